"""Holds the format of a ticket on disk: how it is packed, recorded, read back, opened with its base, and exported."""
