"""The format of a ticket on disk: its record, its packing, how it is read back, opened with its base, and exported."""
