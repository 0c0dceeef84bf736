"""Files: they are created whole or not at all, read and written past the page cache, locked and hashed."""
