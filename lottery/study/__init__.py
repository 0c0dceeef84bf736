"""This room makes studies: the many tickets of one question, on this machine or on a Slurm cluster."""
