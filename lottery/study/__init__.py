"""Many tickets of one question, on this machine or on a Slurm cluster."""
