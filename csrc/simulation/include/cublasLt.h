// Replaces the header of cuBLASLt: programs that include it compile; its calculations fail with their names.
#pragma once

#include "cublas_v2.h"

enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_COMPUTE_TYPE,
    CUBLASLT_MATMUL_DESC_SCALE_TYPE,
    CUBLASLT_MATMUL_DESC_POINTER_MODE,
    CUBLASLT_MATMUL_DESC_TRANSA,
    CUBLASLT_MATMUL_DESC_TRANSB,
    CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD,
};
enum cublasLtMatrixLayoutAttribute_t {
    CUBLASLT_MATRIX_LAYOUT_ORDER,
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
};
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT,
    CUBLASLT_EPILOGUE_RELU,
    CUBLASLT_EPILOGUE_BIAS,
    CUBLASLT_EPILOGUE_GELU,
    CUBLASLT_EPILOGUE_GELU_AUX,
    CUBLASLT_EPILOGUE_GELU_BIAS,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
    CUBLASLT_EPILOGUE_DGELU,
    CUBLASLT_EPILOGUE_BGRADA,
    CUBLASLT_EPILOGUE_BGRADB,
};
struct cublasLtMatmulAlgo_t {};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
};
using cublasLtHandle_t = struct cublasLtContext*;
using cublasLtMatmulDesc_t = struct cublasLtMatmulDescOpaque*;
using cublasLtMatrixLayout_t = struct cublasLtMatrixLayoutOpaque*;
using cublasLtMatmulPreference_t = struct cublasLtMatmulPreferenceOpaque*;

CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasLtCreate)
CUDASIM_IDLE(cublasStatus_t, CUBLAS_STATUS_SUCCESS, cublasLtDestroy)
CUDASIM_CUBLAS(LtMatmul)
CUDASIM_CUBLAS(LtMatmulAlgoGetHeuristic)
CUDASIM_CUBLAS(LtMatmulDescCreate)
CUDASIM_CUBLAS(LtMatmulDescDestroy)
CUDASIM_CUBLAS(LtMatmulDescSetAttribute)
CUDASIM_CUBLAS(LtMatmulPreferenceCreate)
CUDASIM_CUBLAS(LtMatmulPreferenceDestroy)
CUDASIM_CUBLAS(LtMatmulPreferenceSetAttribute)
CUDASIM_CUBLAS(LtMatrixLayoutCreate)
CUDASIM_CUBLAS(LtMatrixLayoutDestroy)
CUDASIM_CUBLAS(LtMatrixLayoutSetAttribute)
