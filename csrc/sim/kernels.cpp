// The kernels, compiled by the host's compiler.
#include "../backward_apply.cu"
#include "../backward_stats.cu"
#include "../forward_apply.cu"
#include "../forward_stats.cu"
