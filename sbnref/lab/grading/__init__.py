"""Grade four stage functions or CUDA kernels, and find the smallest input on which they fail."""
