// Replaces the header of cuBLAS: programs that include it compile; its calculations fail with their names.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "library_types.h"

#define CUBLAS_API_H_

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16,
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER, CUBLAS_FILL_MODE_UPPER };
enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT, CUBLAS_DIAG_UNIT };
enum cublasSideMode_t { CUBLAS_SIDE_LEFT, CUBLAS_SIDE_RIGHT };
enum cublasPointerMode_t { CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_TENSOR_OP_MATH = 1, CUBLAS_TF32_TENSOR_OP_MATH = 3 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1, CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99 };
enum cublasComputeType_t {
    CUBLAS_COMPUTE_16F = 64,
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_COMPUTE_64F = 70,
    CUBLAS_COMPUTE_32I = 72,
    CUBLAS_COMPUTE_32F_FAST_16F = 74,
    CUBLAS_COMPUTE_32F_FAST_16BF = 75,
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
};
using cublasDataType_t = cudaDataType;
using cublasHandle_t = struct cublasContext*;

#define CUDASIM_CUBLAS(name) CUDASIM_LACKS(cublasStatus_t, CUBLAS_STATUS_NOT_SUPPORTED, cublas##name)
#define CUDASIM_CUBLAS_SD(name) CUDASIM_CUBLAS(S##name) CUDASIM_CUBLAS(D##name)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasCreate)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasDestroy)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasSetMathMode)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasSetPointerMode)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasSetStream)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasSetWorkspace)
CUDASIM_IDLE(const char*, "not supported by the simulation", cublasGetStatusString)
CUDASIM_CUBLAS_SD(axpy)
CUDASIM_CUBLAS_SD(copy)
CUDASIM_CUBLAS_SD(scal)
CUDASIM_CUBLAS_SD(swap)
CUDASIM_CUBLAS_SD(dot)
CUDASIM_CUBLAS_SD(nrm2)
CUDASIM_CUBLAS_SD(asum)
CUDASIM_CUBLAS_SD(gemv)
CUDASIM_CUBLAS_SD(ger)
CUDASIM_CUBLAS_SD(symm)
CUDASIM_CUBLAS_SD(syrk)
CUDASIM_CUBLAS_SD(trsm)
CUDASIM_CUBLAS_SD(geam)
CUDASIM_CUBLAS_SD(gemm)
CUDASIM_CUBLAS_SD(gemmBatched)
CUDASIM_CUBLAS_SD(gemmStridedBatched)
CUDASIM_CUBLAS(Isamax)
CUDASIM_CUBLAS(Isamin)
CUDASIM_CUBLAS(Hgemm)
CUDASIM_CUBLAS(HgemmStridedBatched)
CUDASIM_CUBLAS(GemmEx)
CUDASIM_CUBLAS(GemmBatchedEx)
CUDASIM_CUBLAS(GemmStridedBatchedEx)
CUDASIM_CUBLAS(SetMatrix)
CUDASIM_CUBLAS(GetMatrix)
CUDASIM_CUBLAS(SetVector)
CUDASIM_CUBLAS(GetVector)
#undef CUDASIM_CUBLAS_SD
