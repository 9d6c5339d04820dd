// Replaces the header of the CUDA toolkit: __nv_bfloat16 and its pair.
#pragma once

#include "cuda_fp16.h"

CUDASIM_SHORT_FLOAT(
    __nv_bfloat16, __nv_bfloat162, cudasim::float_to_bfloat16, cudasim::bfloat16_to_float, bfloat16, bfloat162)
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
