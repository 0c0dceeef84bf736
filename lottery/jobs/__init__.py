"""Tells the story of one ticket from a spec to a registered version, and evaluates, loads and exports tickets."""
