// Replaces cuRAND's header for kernels: programs that include it compile; its calls fail with their names.
#pragma once

#include "curand.h"

struct curandState {};
using curandState_t = curandState;
using curandStateXORWOW_t = curandState;
using curandStatePhilox4_32_10_t = curandState;
using curandStateMRG32k3a_t = curandState;
using curandStateSobol32_t = curandState;
using curandStateSobol64_t = curandState;
using curandStateSobol32 = curandState;
using curandStateSobol64 = curandState;

#define CUDASIM_CURAND(T, name) CUDASIM_LACKS(T, T{}, curand##name)
CUDASIM_LACKS(void, void(), curand_init)
CUDASIM_LACKS(unsigned, 0, curand)
CUDASIM_CURAND(float, _uniform)
CUDASIM_CURAND(float, _normal)
CUDASIM_CURAND(float, _log_normal)
CUDASIM_CURAND(unsigned, _poisson)
CUDASIM_CURAND(double, _uniform_double)
CUDASIM_CURAND(double, _normal_double)
CUDASIM_CURAND(float2, _normal2)
CUDASIM_CURAND(float4, _uniform4)
CUDASIM_CURAND(float4, _normal4)
#undef CUDASIM_CURAND
