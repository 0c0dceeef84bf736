"""Kernels that select, pack, unpack and quantize weights on a CPU or a GPU. They take arrays and return arrays."""
