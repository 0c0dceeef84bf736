"""What a model is on disk: where it comes from, its files, its family, its targets. No weights in memory."""
