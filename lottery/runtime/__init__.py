"""Turns a base or a ticket on disk into a model that computes."""
