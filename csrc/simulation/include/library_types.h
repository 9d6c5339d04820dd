// Replaces the header of the CUDA toolkit: types of data, and functions of libraries that the simulation lacks.
#pragma once

#include "cuda_runtime.h"

enum cudaDataType_t {
    CUDA_R_32F = 0,
    CUDA_R_64F = 1,
    CUDA_R_16F = 2,
    CUDA_R_8I = 3,
    CUDA_C_32F = 4,
    CUDA_C_64F = 5,
    CUDA_R_32I = 10,
    CUDA_R_16BF = 14,
    CUDA_R_8F_E4M3 = 28,
    CUDA_R_8F_E5M2 = 29,
};
using cudaDataType = cudaDataType_t;

namespace cudasim {
void not_supported(const char* function);  // a fault of the host, at the call of the function
}

// A function that accepts any arguments and fails with its name.
#define CUDASIM_LACKS(Status, error, name)             \
    template <typename... Arguments>                   \
    CUDASIM_BUILTIN Status name(const Arguments&...) { \
        cudasim::not_supported(#name);                 \
        return error;                                  \
    }

// A function that accepts any arguments and does nothing.
#define CUDASIM_IDLE(Status, success, name)            \
    template <typename... Arguments>                   \
    CUDASIM_BUILTIN Status name(const Arguments&...) { \
        return success;                                \
    }
