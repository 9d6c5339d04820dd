// Included after a file of kernels: EXPORT(name) lets Python call its function of that name. The call returns an error
// message, or null.
#pragma once

#define EXPORT(name)                                                       \
    extern "C" const char* laboratory_##name(const Problem* problem) {     \
        name(*problem);                                                    \
        const cudaError_t error = cudaGetLastError();                      \
        return error == cudaSuccess ? nullptr : cudaGetErrorString(error); \
    }
