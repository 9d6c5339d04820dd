// Replaces the header of cuRAND: programs that include it compile; its calls fail with their names.
#pragma once

#include "library_types.h"

enum curandStatus_t { CURAND_STATUS_SUCCESS = 0, CURAND_STATUS_INTERNAL_ERROR = 999 };
using curandStatus = curandStatus_t;
enum curandRngType_t {
    CURAND_RNG_PSEUDO_DEFAULT = 100,
    CURAND_RNG_PSEUDO_XORWOW = 101,
    CURAND_RNG_PSEUDO_MRG32K3A = 121,
    CURAND_RNG_PSEUDO_MTGP32 = 141,
    CURAND_RNG_PSEUDO_MT19937 = 142,
    CURAND_RNG_PSEUDO_PHILOX4_32_10 = 161,
    CURAND_RNG_QUASI_DEFAULT = 200,
    CURAND_RNG_QUASI_SOBOL32 = 201,
};
enum curandDirectionVectorSet_t {
    CURAND_DIRECTION_VECTORS_32_JOEKUO6 = 101,
    CURAND_DIRECTION_VECTORS_64_JOEKUO6 = 103,
};
using curandGenerator_t = struct curandGenerator_st*;
using curandDirectionVectors32_t = unsigned[32];
using curandDirectionVectors64_t = unsigned long long[64];

#define CUDASIM_CURAND(name) CUDASIM_LACKS(curandStatus_t, CURAND_STATUS_INTERNAL_ERROR, curand##name)
CUDASIM_CURAND(CreateGenerator)
CUDASIM_CURAND(CreateGeneratorHost)
CUDASIM_CURAND(DestroyGenerator)
CUDASIM_CURAND(SetPseudoRandomGeneratorSeed)
CUDASIM_CURAND(SetQuasiRandomGeneratorDimensions)
CUDASIM_CURAND(SetGeneratorOrdering)
CUDASIM_CURAND(GetDirectionVectors32)
CUDASIM_CURAND(GetDirectionVectors64)
CUDASIM_CURAND(SetStream)
CUDASIM_CURAND(Generate)
CUDASIM_CURAND(GenerateUniform)
CUDASIM_CURAND(GenerateUniformDouble)
CUDASIM_CURAND(GenerateNormal)
CUDASIM_CURAND(GenerateNormalDouble)
#undef CUDASIM_CURAND
