// The published algorithm of mmcv.ops.SyncBatchNorm, as a peer to time: five passes over the tensor, one element at a
// time, with 32-bit indices. Each channel has one block; the last pass, as in mmcv, has as many blocks as the input
// needs, up to 4096. Forward reads x three times and keeps xhat in float32.
//
// x, y, dy, dx: (N, C, S) contiguous; everything per channel: (C,) float32.
#include <algorithm>

#include "reduce.cuh"

namespace sbnref {
namespace {

constexpr int kThreads = 512;
constexpr int kMostBlocks = 4096;

// The elements of a block's channel.
struct Channel {
    int N, C, S;
    __device__ int count() const { return N * S; }
    __device__ int index(int i) const { return (i / S * C + blockIdx.x) * S + i % S; }
};

// Sums f over the channel's elements; only thread 0 gets the result.
template <typename F>
__device__ Pair sum_over_channel(const Channel& channel, const F& f) {
    __shared__ Pair scratch[kThreads / kWarp];
    float first = 0, second = 0;
    for (int i = threadIdx.x; i < channel.count(); i += blockDim.x) f(channel.index(i), first, second);
    Plan plan{};
    plan.layout = Layout::ChannelsFirst;
    plan.lanes = plan.tile_channels = 1;
    plan.splits = 1;
    const Place place(plan, Direction::Forwards);
    return sum_by_lanes<1>(plan, place, [&](int) { return Pair{first, second}; }, scratch);
}

template <typename T>
__global__ void mean_kernel(Channel channel, const T* x, float* mean) {
    const Pair sum = sum_over_channel(channel, [&](int i, float& first, float&) { first += static_cast<float>(x[i]); });
    if (threadIdx.x == 0) mean[blockIdx.x] = static_cast<float>(sum.first / channel.count());
}

template <typename T>
__global__ void var_kernel(Channel channel, const T* x, const float* mean, float* var) {
    const float center = mean[blockIdx.x];
    const Pair sum = sum_over_channel(channel, [&](int i, float& first, float&) {
        const float deviation = static_cast<float>(x[i]) - center;
        first += deviation * deviation;
    });
    if (threadIdx.x == 0) var[blockIdx.x] = static_cast<float>(sum.first / channel.count());
}

template <typename T>
__global__ void output_kernel(
    Channel channel, float eps, float momentum, const T* x, const float* mean, const float* var, const float* weight,
    const float* bias, float* running_mean, float* running_var, float* std_out, float* xhat, T* y) {
    const int c = blockIdx.x;
    const float m = mean[c], v = var[c], std = sqrtf(v + eps), w = weight[c], b = bias[c];
    for (int i = threadIdx.x; i < channel.count(); i += blockDim.x) {
        const int at = channel.index(i);
        const float normalized = (static_cast<float>(x[at]) - m) / std;
        xhat[at] = normalized;
        y[at] = static_cast<T>(normalized * w + b);
    }
    if (threadIdx.x == 0) {
        const float corrected = v * channel.count() / (channel.count() - 1);
        std_out[c] = std;
        running_mean[c] = running_mean[c] * (1 - momentum) + m * momentum;
        running_var[c] = running_var[c] * (1 - momentum) + corrected * momentum;
    }
}

template <typename T>
__global__ void param_kernel(Channel channel, const T* dy, const float* xhat, float* dweight, float* dbias) {
    const Pair sum = sum_over_channel(channel, [&](int i, float& first, float& second) {
        const float g = static_cast<float>(dy[i]);
        first += g * xhat[i];
        second += g;
    });
    if (threadIdx.x == 0) {
        dweight[blockIdx.x] = static_cast<float>(sum.first);
        dbias[blockIdx.x] = static_cast<float>(sum.second);
    }
}

template <typename T>
__global__ void data_kernel(
    Channel channel, const T* dy, const float* xhat, const float* weight, const float* std, const float* dweight,
    const float* dbias, T* dx) {
    const int c = blockIdx.x;
    const float scale = weight[c] / std[c], gw = dweight[c], gb = dbias[c];
    const float per_count = 1.0f / channel.count();
    const int step = gridDim.y * blockDim.x;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < channel.count(); i += step) {
        const int at = channel.index(i);
        const float g = static_cast<float>(dy[at]);
        dx[at] = static_cast<T>(scale * (g - (gw * xhat[at] + gb) * per_count));
    }
}

template <typename T>
void run_pass(int pass, const Channel& channel, float eps, float momentum, void* const (&p)[12], cudaStream_t stream) {
    const auto x = static_cast<const T*>(p[0]);  // or dy
    const auto f = [&](int i) { return static_cast<float*>(p[i]); };
    const int blocks = channel.C, parts = (channel.N * channel.S + kThreads - 1) / kThreads;
    const dim3 all_blocks(blocks, std::max(1, std::min(parts, kMostBlocks / blocks)));
    switch (pass) {
        case 0: mean_kernel<T><<<blocks, kThreads, 0, stream>>>(channel, x, f(1)); break;
        case 1: var_kernel<T><<<blocks, kThreads, 0, stream>>>(channel, x, f(1), f(2)); break;
        case 2:
            output_kernel<T><<<blocks, kThreads, 0, stream>>>(
                channel, eps, momentum, x, f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), static_cast<T*>(p[9]));
            break;
        case 3: param_kernel<T><<<blocks, kThreads, 0, stream>>>(channel, x, f(1), f(2), f(3)); break;
        default:
            data_kernel<T>
                <<<all_blocks, kThreads, 0, stream>>>(channel, x, f(1), f(2), f(3), f(4), f(5), static_cast<T*>(p[6]));
    }
    check_launch("mmcv_pass");
}

}  // namespace
}  // namespace sbnref

// Runs one pass. pointers: the arguments of the pass's kernel, in order.
extern "C" void mmcv_pass(
    int pass, int dtype, int64_t N, int64_t C, int64_t S, float eps, float momentum, void* const (*pointers)[12],
    void* stream) {
    using namespace sbnref;
    const Channel channel{static_cast<int>(N), static_cast<int>(C), static_cast<int>(S)};
    const auto on = static_cast<cudaStream_t>(stream);
    switch (static_cast<Dtype>(dtype)) {
        case Dtype::Half: return run_pass<c10::Half>(pass, channel, eps, momentum, *pointers, on);
        case Dtype::BFloat16: return run_pass<c10::BFloat16>(pass, channel, eps, momentum, *pointers, on);
        default: return run_pass<float>(pass, channel, eps, momentum, *pointers, on);
    }
}
