"""Trains small models from scratch, with and without a mask, for the lottery ticket hypothesis."""
