"""Grading somebody's own CUDA kernels in the simulation: whether they are right, legal and efficient."""
