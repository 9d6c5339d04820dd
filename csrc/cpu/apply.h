// One output element for every input element, for the stages that apply.
//
// The output is made in chunks that follow each other in memory, across rows. Within a chunk, rows are written
// forwards: the last lanes of a row may overwrite the start of the next row, which is written after it. A thread
// processes its share backwards, so that it starts on data that the first pass left in the cache. It goes by stretches
// of a million elements, and forwards in each, because prefetchers recognize only ascending accesses.
//
// An output that is too large to stay in the cache until it is read is *streamed*: a chunk is made in L1 and leaves it
// in whole cache lines, around the other caches. An ordinary store first fetches the line that it overwrites, a third
// of the traffic from x to y, and evicts a line of x, which the backward pass could have found in the cache. Lines
// written in two parts would spoil streaming, and rows are rarely whole lines: hence the detour over L1.
//
// A stage defines the new value of an element, given K coefficients of its channel:
//
//   Lanes<A> map(Load load, const Lanes<A> (&coefficients)[K])   load(p) gives the lanes of a tensor p
#pragma once

#include <cmath>
#include <limits>

#include "stages.h"

namespace sbnref::cpu {

// Calls f with each channel, on several threads if there are many channels.
template <typename F>
void for_channels(int64_t channels, const F& f) {
    in_parallel(channels, kLeastChannels, [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel) f(channel);
    });
}

// K coefficients for every channel; for columns, repeated for several rows to reach a good length.
template <typename A, int K>
struct Coefficients {
    static constexpr int64_t kLeastWidth = 256;

    explicit Coefficients(const Shape& shape)
        : channels(shape.channels),
          width(shape.inner > 1 ? channels : ceil_div(kLeastWidth, channels) * channels),
          stride(width + Lanes<A>::kCount),  // the lanes of the last column may extend beyond the end
          values(K * stride) {}

    void set(int64_t channel, const A (&of_channel)[K]) {
        for (int k = 0; k < K; ++k) {
            // Replace every NaN by one whose lower half is zero, as in a widened NaN; so all results have such NaNs.
            const A value = std::isnan(of_channel[k]) ? std::numeric_limits<A>::quiet_NaN() : of_channel[k];
            for (int64_t column = channel; column < width; column += channels) values[k * stride + column] = value;
        }
    }
    const A* at(int k, int64_t column) const { return values.data() + k * stride + column; }

    int64_t channels, width, stride;
    std::vector<A> values;  // (K, stride)
};

constexpr int64_t kChunk = 2048;   // elements: 16 KiB at most
constexpr int64_t kStretch = 512;  // chunks
constexpr int64_t kLeastStreamedRow = 256;

// Whether input and output together are too large for the cache. Short rows take longer to compute than to store.
inline bool streams(const Shape& shape, const void* out, int64_t element_size) {
    return (shape.inner == 1 || shape.inner >= kLeastStreamedRow) &&
           2 * shape.size() * element_size > last_level_cache() && reinterpret_cast<uintptr_t>(out) % kLanesBytes == 0;
}

// Copies to a multiple of kLanesBytes around the caches, if the CPU has an instruction for that.
inline void stream(void* to, const void* from, size_t bytes) {
    size_t done = 0;
#ifdef __SSE2__
    const auto* source = static_cast<const char*>(from);
    auto* target = static_cast<char*>(to);
    for (; done + kLanesBytes <= bytes; done += kLanesBytes) {
#pragma GCC unroll 4
        for (int i = 0; i < kRegisters; ++i) {
            const size_t at = done + i * kRegisterBytes;
#if defined(__AVX512F__)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(target + at), _mm512_load_si512(source + at));
#elif defined(__AVX2__)
            _mm256_stream_si256(
                reinterpret_cast<__m256i*>(target + at),
                _mm256_load_si256(reinterpret_cast<const __m256i*>(source + at)));
#else
            _mm_stream_si128(
                reinterpret_cast<__m128i*>(target + at), _mm_load_si128(reinterpret_cast<const __m128i*>(source + at)));
#endif
        }
    }
#endif
    std::memcpy(static_cast<char*>(to) + done, static_cast<const char*>(from) + done, bytes - done);
}

// Makes streamed lines visible to other threads.
inline void finish_streaming() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// Computes the elements from `begin` to `end`. It may overwrite memory between their end in `out` and out_end.
template <typename Stage, typename A, int K, typename T>
SBNREF_INLINE void make_rows(
    const Shape& shape, const Stage stage, const Coefficients<A, K>& coefficients, int64_t begin, int64_t end, T* out,
    T* out_end) {
    constexpr int64_t L = Lanes<A>::kCount;
    int64_t row = begin / shape.inner, channel = row % shape.channels;
    for (int64_t at = begin; at < end; ++row, channel = channel + 1 == shape.channels ? 0 : channel + 1) {
        Lanes<A> c[K];
        for (int k = 0; k < K; ++k) c[k] = all(*coefficients.at(k, channel));
        const int64_t stop = std::min((row + 1) * shape.inner, end);
        for (; at + L <= stop; at += L, out += L) store(out, stage.map([&](auto p) { return load(p.data + at); }, c));
        if (const int64_t rest = stop - at; rest > 0) {
            store(out, stage.map([&](auto p) { return load(p.data + at, rest, p.end()); }, c), rest, out_end);
            at += rest, out += rest;
        }
    }
}

template <typename Stage, typename A, int K, typename T>
SBNREF_INLINE void make_columns(
    const Stage stage, const Coefficients<A, K>& coefficients, int64_t begin, int64_t end, T* out, T* out_end) {
    constexpr int64_t L = Lanes<A>::kCount;
    const int64_t width = coefficients.width, stride = coefficients.stride;
    int64_t column = begin % coefficients.channels;
    for (int64_t at = begin; at < end; column = 0) {
        const int64_t stop = std::min(at + width - column, end);
        const A* of_column = coefficients.at(0, column);
        Lanes<A> c[K];
        for (; at + L <= stop; at += L, out += L, of_column += L) {
            for (int k = 0; k < K; ++k) c[k] = load(of_column + k * stride);
            store(out, stage.map([&](auto p) { return load(p.data + at); }, c));
        }
        if (const int64_t rest = stop - at; rest > 0) {
            for (int k = 0; k < K; ++k) c[k] = load(of_column + k * stride);
            store(out, stage.map([&](auto p) { return load(p.data + at, rest, p.end()); }, c), rest, out_end);
            at += rest, out += rest;
        }
    }
}

template <typename Stage, typename A, int K, typename T>
void apply(const Shape& shape, const Stage& stage, const Coefficients<A, K>& coefficients, T* out) {
    const int64_t size = shape.size();
    const bool streamed = streams(shape, out, sizeof(T));
    const auto make = [&](int64_t begin, int64_t end, T* to, T* to_end) {
        if (shape.inner > 1)
            make_rows(shape, stage, coefficients, begin, end, to, to_end);
        else
            make_columns(stage, coefficients, begin, end, to, to_end);
    };
    in_parallel(ceil_div(size, kChunk), kLeastWork / kChunk, [&](int64_t first, int64_t last) {
        for (int64_t stretch_end = last; stretch_end > first;) {
            const int64_t stretch = std::max(stretch_end - kStretch, first);
            for (int64_t chunk = stretch; chunk < stretch_end; ++chunk) {
                const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, size);
                if (streamed) {
                    alignas(kLanesBytes) T made[kChunk + Lanes<A>::kCount];
                    make(begin, end, made, std::end(made));
                    stream(out + begin, made, (end - begin) * sizeof(T));
                } else {
                    make(begin, end, out + begin, out + end);
                }
            }
            stretch_end = stretch;
        }
        if (streamed) finish_streaming();
    });
}

}  // namespace sbnref::cpu
