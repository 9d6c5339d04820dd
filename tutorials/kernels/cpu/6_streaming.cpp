// Rung 6, streaming: y bypasses the caches. An ordinary store first fetches the line
// that it overwrites; a stream of whole lines does not. To have whole lines for rows of
// any length, each thread computes a chunk of y in L1 first.
#include <algorithm>
#include <iterator>

#include "cpu/lanes.h"
#include "ladder.h"

namespace sbnref::cpu::ladder {

EXPORT void ladder_threads(const Problem*);

namespace {

constexpr int64_t kLine = Lanes<float>::kCount;  // elements of a cache line
constexpr uintptr_t kLineBytes = kLanesBytes;

void stream_line(float* to, const Lanes<float>& line) {
    for (int i = 0; i < kRegisters; ++i) {
        float* const at = to + i * Lanes<float>::kPerRegister;
#if defined(__AVX512F__)
        _mm512_stream_ps(at, line.part[i]);
#elif defined(__AVX2__)
        _mm256_stream_ps(at, line.part[i]);
#elif defined(__SSE2__)
        _mm_stream_ps(at, line.part[i]);
#else
        std::memcpy(at, &line.part[i], kRegisterBytes);  // an ordinary store
#endif
    }
}

// Make the streamed lines visible to other threads.
void finish_streaming() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

}  // namespace

EXPORT void ladder_streaming(const Problem* problem) {
    const Problem& p = *problem;
    if (reinterpret_cast<uintptr_t>(p.y) % kLineBytes != 0) return ladder_threads(&p);
    const std::vector<Line> lines = threaded_lines(p);
#pragma omp parallel num_threads(p.threads)
    {
#pragma omp for
        for (int64_t begin = 0; begin < p.size(); begin += kChunk) {
            const int64_t end = std::min(begin + kChunk, p.size());
            alignas(kLineBytes) float made[kChunk + kLine];
            vector_normalize(p, lines, begin, end, made, std::end(made));
            int64_t at = begin;
            for (; at + kLine <= end; at += kLine)
                stream_line(p.y + at, load(made + at - begin));
            std::copy(made + at - begin, made + end - begin, p.y + at);
        }
        finish_streaming();
    }
}

}  // namespace sbnref::cpu::ladder
