"""Grade CUDA kernels in the simulation: are they legal, right and efficient?"""
