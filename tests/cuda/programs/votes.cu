#include "program.h"

__global__ void votes(const int* x, unsigned* out) {
    const int lane = threadIdx.x;
    const int v = x[lane];
    const unsigned odd = __ballot_sync(~0u, v % 2);
    const int some = __any_sync(~0u, v == 31), every = __all_sync(~0u, v >= 0);
    const unsigned same = __match_any_sync(~0u, v / 8);
    unsigned upper = 0, active = 0, sum = 0;
    if (lane >= 16) {
        upper = __ballot_sync(0xffff0000u, v < 20);
        active = __activemask();
        sum = __reduce_add_sync(0xffff0000u, static_cast<unsigned>(v));
    }
    const int quarter = __shfl_sync(~0u, v, 1, 8), last = __shfl_xor_sync(~0u, v, 31);
    unsigned* const mine = out + 9 * lane;
    const unsigned all[9] = {odd, (unsigned)some,    (unsigned)every, same, upper, active,
                             sum, (unsigned)quarter, (unsigned)last};
    for (int k = 0; k < 9; ++k) mine[k] = all[k];
}

// All but the first lanes have returned when the others vote.
__global__ void survivors(unsigned* out) {
    if (threadIdx.x >= 20) return;
    const unsigned votes = __ballot_sync(~0u, threadIdx.x % 4 == 0);
    const int all = __all_sync(~0u, threadIdx.x < 20);
    if (threadIdx.x == 0) out[0] = votes, out[1] = all, out[2] = __popc(votes), out[3] = __ffs(votes) + __clz(votes);
}

int main() {
    std::vector<int> h(32);
    for (int i = 0; i < 32; ++i) h[i] = i;
    int* x = on_gpu(h);
    unsigned *out = on_gpu<unsigned>(9 * 32), *few = on_gpu<unsigned>(4);
    votes<<<1, 32>>>(x, out);
    survivors<<<1, 32>>>(few);
    const auto r = take(out, 9 * 32), s = take(few, 4);
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned* mine = &r[9 * lane];
        EXPECT(mine[0] == 0xaaaaaaaau && mine[1] == 1 && mine[2] == 1 && mine[3] == 0xffu << lane / 8 * 8);
        EXPECT(mine[4] == (lane < 16 ? 0 : 0xf0000u) && mine[5] == (lane < 16 ? 0 : 0xffff0000u));
        EXPECT(mine[6] == (lane < 16 ? 0 : 376) && mine[7] == lane / 8 * 8 + 1 && mine[8] == 31 - lane);
    }
    EXPECT(s[0] == 0x11111u && s[1] == 1 && s[2] == 5 && s[3] == 1 + 15);
    CUDA(cudaFree(x));
}
