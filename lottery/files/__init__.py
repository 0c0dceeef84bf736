"""How files come into being, are read past the page cache, and are hashed."""
