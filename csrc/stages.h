// The interface between operators and kernels: the four stages on raw memory. The stages do not depend on PyTorch's
// tensors, nor the operators on kernels.
#pragma once

#include <cstdint>

#include "plan.h"

namespace sbnref {

enum class Dtype : int { Half, BFloat16, Float, Double };

// A piece of device memory. data is null for a missing tensor.
struct Buffer {
    void* data = nullptr;
    int64_t size = 0;  // elements
    Dtype dtype = Dtype::Float;
    int64_t stride = 1;  // from one channel to the next, where it is per channel
};

// Memory that the blocks of a reduction share. Empty unless a tile is split over several blocks.
struct Workspace {
    double* partials = nullptr;  // (tiles, splits, tile_channels, 2)
    int64_t partials_size = 0;
    unsigned* tickets = nullptr;  // (kTickets,) zero before and after every launch
};

using Stream = void*;  // a cudaStream_t

struct ForwardStats {
    Buffer x;        // (outer, channels, inner)
    double weight;   // w, the weight of this rank
    Buffer payload;  // (3C + 2,) float64: w mean, w var, w mean^2, w, m, out
};
void forward_stats(const Plan&, const ForwardStats&, const Workspace&, Stream);

struct ForwardApply {
    Buffer x;            // (outer, channels, inner)
    Buffer total;        // (3C + 2,) float64, the payloads of all ranks, summed
    int64_t divisor;     // D, or 0 for the sum of the weights
    Buffer gamma, beta;  // (C,) any dtype, or null
    double eps;
    Buffer running_mean, running_var;  // (C,) any dtype, or null; updated in place
    int64_t* num_batches_tracked;      // () or null; updated in place
    unsigned* tickets;                 // (kTickets,) if num_batches_tracked is given and the average is cumulative
    bool cumulative;                   // average over all steps: momentum is 1 / num_batches_tracked
    double momentum;
    Buffer y;      // (outer, channels, inner), out
    Buffer saved;  // (4, C) float64: mean, 1 / sigma, skew, 1 / D, out
};
void forward_apply(const Plan&, const ForwardApply&, Stream);

struct BackwardStats {
    Buffer dy, x;    // (outer, channels, inner)
    Buffer saved;    // (4, C) float64
    Buffer payload;  // (2C,) float64, out
};
void backward_stats(const Plan&, const BackwardStats&, const Workspace&, Stream);

struct BackwardApply {
    Buffer dy, x;          // (outer, channels, inner)
    Buffer total;          // (2C,) float64, the payloads of all ranks, summed
    Buffer saved;          // (4, C) float64
    Buffer gamma;          // (C,) any dtype, or null
    double k;              // w / m
    Buffer dx;             // (outer, channels, inner), out
    Buffer dgamma, dbeta;  // (C,) any dtype, averages over the ranks, out; or null
    double ranks;
};
void backward_apply(const Plan&, const BackwardApply&, Stream);

// Calls f(name, buffer) for each array of a stage.
template <typename F>
void each_array(const ForwardStats& s, const F& f) {
    f("x", s.x), f("payload", s.payload);
}
template <typename F>
void each_array(const ForwardApply& s, const F& f) {
    f("x", s.x), f("total", s.total), f("gamma", s.gamma), f("beta", s.beta), f("y", s.y), f("saved", s.saved);
    f("running_mean", s.running_mean), f("running_var", s.running_var);
    f("num_batches_tracked", Buffer{s.num_batches_tracked, 1, Dtype::Double});
    f("tickets", Buffer{s.tickets, kTickets});
}
template <typename F>
void each_array(const BackwardStats& s, const F& f) {
    f("dy", s.dy), f("x", s.x), f("saved", s.saved), f("payload", s.payload);
}
template <typename F>
void each_array(const BackwardApply& s, const F& f) {
    f("dy", s.dy), f("x", s.x), f("total", s.total), f("saved", s.saved), f("gamma", s.gamma), f("dx", s.dx);
    f("dgamma", s.dgamma), f("dbeta", s.dbeta);
}
template <typename F>
void each_array(const Workspace& w, const F& f) {
    f("partials", Buffer{w.partials, w.partials_size, Dtype::Double}), f("tickets", Buffer{w.tickets, kTickets});
}

// A variance between the ranks below this share of the sum of w mean^2 is a rounding error: see combine in
// sbnref/modes.py.
constexpr double kNoise = 0x1p-50;

// A thread's accesses in flight to each tensor that it reads: four in all.
constexpr int kForwardUnroll = 4;
constexpr int kBackwardUnroll = 2;

}  // namespace sbnref
