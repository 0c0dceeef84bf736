"""Selects the weights to remove, and streams a base's files into those of a ticket."""
