"""The parts of `python analysis/bench.py`: one file for each part, and what several parts use."""
