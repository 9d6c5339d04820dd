// The algorithm that mmcv.ops.SyncBatchNorm publishes, as a peer to be timed: five passes over the tensor, one block
// per channel in each, one element at a time. It reads x three times forward and keeps xhat in float32.
//
// x, y, dy, dx: (N, C, S) contiguous; everything per channel: (C,) float32.
#include "reduce.cuh"

namespace sbnref {
namespace {

constexpr int kThreads = 512;

// Where a block's channel lies.
struct Channel {
    int64_t N, C, S;
    __device__ int64_t count() const { return N * S; }
    __device__ int64_t index(int64_t i) const { return (i / S * C + blockIdx.x) * S + i % S; }
};

// Sums f over the channel's elements; the result is for thread 0.
template <typename F>
__device__ Pair sum_over_channel(const Channel& channel, const F& f) {
    SHARED_ARRAY(Pair, scratch, kThreads / kWarp);
    float first = 0, second = 0;
    for (int64_t i = threadIdx.x; i < channel.count(); i += blockDim.x) f(channel.index(i), first, second);
    Plan plan{};
    plan.layout = Layout::ChannelsFirst;
    plan.lanes = plan.tile_channels = 1;
    plan.splits = 1;
    const Place place(plan, Direction::Forwards);
    return sum_by_lanes<1>(plan, place, [&](int) { return Pair{first, second}; }, scratch);
}

template <typename T>
__global__ void mean_kernel(Channel channel, Array<const T> x, Array<float> mean) {
    const Pair sum =
        sum_over_channel(channel, [&](int64_t i, float& first, float&) { first += static_cast<float>(load(x, i)); });
    if (threadIdx.x == 0) store(mean, blockIdx.x, static_cast<float>(sum.first / channel.count()));
}

template <typename T>
__global__ void var_kernel(Channel channel, Array<const T> x, Array<const float> mean, Array<float> var) {
    const float center = load(mean, blockIdx.x);
    const Pair sum = sum_over_channel(channel, [&](int64_t i, float& first, float&) {
        const float deviation = static_cast<float>(load(x, i)) - center;
        first += deviation * deviation;
    });
    if (threadIdx.x == 0) store(var, blockIdx.x, static_cast<float>(sum.first / channel.count()));
}

template <typename T>
__global__ void output_kernel(
    Channel channel, float eps, float momentum, Array<const T> x, Array<const float> mean, Array<const float> var,
    Array<const float> weight, Array<const float> bias, Array<float> running_mean, Array<float> running_var,
    Array<float> std_out, Array<float> xhat, Array<T> y) {
    const int c = blockIdx.x;
    const float m = load(mean, c), v = load(var, c), std = sqrtf(v + eps), w = load(weight, c), b = load(bias, c);
    for (int64_t i = threadIdx.x; i < channel.count(); i += blockDim.x) {
        const int64_t at = channel.index(i);
        const float normalized = (static_cast<float>(load(x, at)) - m) / std;
        store(xhat, at, normalized);
        store(y, at, static_cast<T>(normalized * w + b));
    }
    if (threadIdx.x == 0) {
        const auto constant = [](const Array<float>& array) { return Array<const float>{array.data, array.size}; };
        const float corrected = v * channel.count() / (channel.count() - 1);
        store(std_out, c, std);
        store(running_mean, c, load(constant(running_mean), c) * (1 - momentum) + m * momentum);
        store(running_var, c, load(constant(running_var), c) * (1 - momentum) + corrected * momentum);
    }
}

template <typename T>
__global__ void param_kernel(
    Channel channel, Array<const T> dy, Array<const float> xhat, Array<float> dweight, Array<float> dbias) {
    const Pair sum = sum_over_channel(channel, [&](int64_t i, float& first, float& second) {
        const float g = static_cast<float>(load(dy, i));
        first += g * load(xhat, i);
        second += g;
    });
    if (threadIdx.x == 0) {
        store(dweight, blockIdx.x, static_cast<float>(sum.first));
        store(dbias, blockIdx.x, static_cast<float>(sum.second));
    }
}

template <typename T>
__global__ void data_kernel(
    Channel channel, Array<const T> dy, Array<const float> xhat, Array<const float> weight, Array<const float> std,
    Array<const float> dweight, Array<const float> dbias, Array<T> dx) {
    const int c = blockIdx.x;
    const float scale = load(weight, c) / load(std, c), gw = load(dweight, c), gb = load(dbias, c);
    const float per_count = 1.0f / channel.count();
    for (int64_t i = threadIdx.x; i < channel.count(); i += blockDim.x) {
        const int64_t at = channel.index(i);
        const float g = static_cast<float>(load(dy, at));
        store(dx, at, static_cast<T>(scale * (g - (gw * load(xhat, at) + gb) * per_count)));
    }
}

struct Launcher {
    Channel channel;
    Stream stream;

    template <typename... Parameters, typename... Arguments>
    void operator()(const char* name, void (*kernel)(Channel, Parameters...), const Arguments&... arguments) const {
        Plan plan{};
        plan.tiles = channel.C;
        plan.splits = 1;
        plan.threads = kThreads;
        launch(name, kernel, plan, 0, stream, channel, arguments...);
    }
};

template <typename T, int size>
Array<T> whole(void* const (&pointers)[size], int i, int64_t elements) {
    return {static_cast<T*>(pointers[i]), elements};
}

template <typename T>
void run_pass(int pass, const Launcher& launcher, float eps, float momentum, void* const (&p)[12]) {
    const int64_t C = launcher.channel.C, all = launcher.channel.N * C * launcher.channel.S;
    using X = const T;
    using P = const float;
    switch (pass) {
        case 0: return launcher("mmcv_mean", mean_kernel<T>, whole<X>(p, 0, all), whole<float>(p, 1, C));
        case 1:
            return launcher("mmcv_var", var_kernel<T>, whole<X>(p, 0, all), whole<P>(p, 1, C), whole<float>(p, 2, C));
        case 2:
            return launcher(
                "mmcv_output", output_kernel<T>, eps, momentum, whole<X>(p, 0, all), whole<P>(p, 1, C),
                whole<P>(p, 2, C), whole<P>(p, 3, C), whole<P>(p, 4, C), whole<float>(p, 5, C), whole<float>(p, 6, C),
                whole<float>(p, 7, C), whole<float>(p, 8, all), whole<T>(p, 9, all));
        case 3:
            return launcher(
                "mmcv_param", param_kernel<T>, whole<X>(p, 0, all), whole<P>(p, 1, all), whole<float>(p, 2, C),
                whole<float>(p, 3, C));
        default:
            return launcher(
                "mmcv_data", data_kernel<T>, whole<X>(p, 0, all), whole<P>(p, 1, all), whole<P>(p, 2, C),
                whole<P>(p, 3, C), whole<P>(p, 4, C), whole<P>(p, 5, C), whole<T>(p, 6, all));
    }
}

}  // namespace
}  // namespace sbnref

// Runs one pass. pointers: what the pass's kernel takes, in its order.
extern "C" void mmcv_pass(
    int pass, int dtype, int64_t N, int64_t C, int64_t S, float eps, float momentum, void* const (*pointers)[12],
    void* stream) {
    using namespace sbnref;
    const Launcher launcher{{N, C, S}, stream};
    switch (static_cast<Dtype>(dtype)) {
        case Dtype::Half: return run_pass<c10::Half>(pass, launcher, eps, momentum, *pointers);
        case Dtype::BFloat16: return run_pass<c10::BFloat16>(pass, launcher, eps, momentum, *pointers);
        default: return run_pass<float>(pass, launcher, eps, momentum, *pointers);
    }
}
