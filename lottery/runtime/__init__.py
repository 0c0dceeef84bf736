"""A base or a ticket on disk becomes a model that computes."""
