"""What a model is worth: perplexity with its interval, speed, memory, samples, controls, the dense baseline."""
