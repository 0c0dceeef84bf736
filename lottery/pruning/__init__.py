"""Which weights go, and the stream from a base's files to a ticket's."""
