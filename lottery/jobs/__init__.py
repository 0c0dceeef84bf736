"""The story of one ticket: from a spec to a registered version, and a ticket that is evaluated or loaded."""
