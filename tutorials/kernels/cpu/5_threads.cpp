// Rung 5, threads: each block has its own result, whichever thread computes it. The
// results are merged in the order of the blocks, so any number of threads gives equal
// bits.
#include <algorithm>

#include "ladder.h"

namespace sbnref::cpu::ladder {

std::vector<Line> threaded_lines(const Problem& p) {
    const Cut cut(p);
    std::vector<Moments> of_block(cut.blocks());
#pragma omp parallel for num_threads(p.threads)
    for (int64_t i = 0; i < cut.blocks(); ++i)
        of_block[i] = vector_moments(p, cut.block(i));

    std::vector<Moments> of_channel(p.C);
    for (int64_t i = 0; i < cut.blocks(); ++i) {
        Moments& channel = of_channel[cut.block(i).channel];
        channel = merge(channel, of_block[i]);
    }
    return lines(p, of_channel);
}

EXPORT void ladder_threads(const Problem* problem) {
    const Problem& p = *problem;
    const std::vector<Line> lines = threaded_lines(p);
#pragma omp parallel for num_threads(p.threads)
    for (int64_t begin = 0; begin < p.size(); begin += kChunk) {
        const int64_t end = std::min(begin + kChunk, p.size());
        vector_normalize(p, lines, begin, end, p.y + begin, p.y + end);
    }
}

}  // namespace sbnref::cpu::ladder
