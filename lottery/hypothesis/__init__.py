"""The laboratory of the lottery ticket hypothesis: which trainings a question needs, how they run, what they claim."""
