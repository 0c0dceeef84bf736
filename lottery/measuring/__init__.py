"""Measures a model: perplexity with its interval, speed, memory, samples, controls, and the dense baseline."""
