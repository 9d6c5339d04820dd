// Replaces the header of NCCL: programs that include it compile; its calls fail with their names.
#pragma once

#include "library_types.h"

enum ncclResult_t { ncclSuccess = 0, ncclInvalidUsage = 5 };
enum ncclRedOp_t { ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg };
enum ncclDataType_t {
    ncclInt8,
    ncclChar = ncclInt8,
    ncclUint8,
    ncclInt32,
    ncclInt = ncclInt32,
    ncclUint32,
    ncclInt64,
    ncclUint64,
    ncclFloat16,
    ncclHalf = ncclFloat16,
    ncclFloat32,
    ncclFloat = ncclFloat32,
    ncclFloat64,
    ncclDouble = ncclFloat64,
    ncclBfloat16,
};
constexpr int NCCL_UNIQUE_ID_BYTES = 128;
struct ncclUniqueId {
    char internal[NCCL_UNIQUE_ID_BYTES];
};
using ncclComm_t = struct ncclComm*;

#define CUDASIM_NCCL(name) CUDASIM_LACKS(ncclResult_t, ncclInvalidUsage, nccl##name)
CUDASIM_IDLE(const char*, "not supported by the simulation", ncclGetErrorString)
CUDASIM_NCCL(GetUniqueId)
CUDASIM_NCCL(CommInitRank)
CUDASIM_NCCL(CommInitAll)
CUDASIM_NCCL(CommDestroy)
CUDASIM_NCCL(GroupStart)
CUDASIM_NCCL(GroupEnd)
CUDASIM_NCCL(AllReduce)
CUDASIM_NCCL(Broadcast)
CUDASIM_NCCL(Reduce)
CUDASIM_NCCL(AllGather)
CUDASIM_NCCL(ReduceScatter)
CUDASIM_NCCL(Send)
CUDASIM_NCCL(Recv)
#undef CUDASIM_NCCL
