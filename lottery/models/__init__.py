"""Models on disk: where a model comes from, its files, its family and its targets. No weights are loaded here."""
