// Counts a launch's traffic: bytes, accesses of warps, the 32-byte sectors that they touch, and bank conflicts of
// shared memory. Lanes of a warp that execute an instruction for the n-th time access memory together.
#include <algorithm>
#include <array>

#include "host.h"
#include "state.h"

namespace cudasim {
namespace {

constexpr uintptr_t kSector = 32;
constexpr unsigned kBanks = 32, kWord = 4;

// The sectors of global memory, or the words of shared memory, that one access of a warp touches, without repetitions.
struct Touched {
    std::vector<uintptr_t> units;
    uintptr_t last = 0, most = 0;

    void add(uintptr_t unit) {
        if (unit == last) return;
        last = unit;
        if (unit <= most && std::find(units.begin(), units.end(), unit) != units.end()) return;
        most = std::max(most, unit);
        units.push_back(unit);
    }

    void clear() {
        units.clear();
        last = most = 0;
    }
};

struct Instruction {
    bool shared;
    std::array<uint32_t, kWarp> executed{};  // number of executions by lane
    uint32_t times = 0;                      // the largest of them
    std::vector<Touched> accesses;           // one for each time, and empty ones from earlier blocks
};

std::vector<Launch>& launched = *new std::vector<Launch>;  // outlives the report at the exit
std::vector<std::vector<Instruction>> of_warp;             // of the running block, by sites and memories
bool tracing = false;
std::vector<int64_t> trace;  // (accesses of a warp, sectors): launch, block, time, access, sector
int64_t traced_accesses;
uint32_t counted_block = ~0u;

void settle_access(Launch& l, bool shared, uint32_t block, uint32_t time, const std::vector<uintptr_t>& touched) {
    if (shared) {
        std::array<int, kBanks> words{};
        for (const uintptr_t word : touched) ++words[word % kBanks];
        const int turns = *std::max_element(words.begin(), words.end());
        l.conflicts += turns - static_cast<int>((touched.size() + kBanks - 1) / kBanks);
        ++l.shared_accesses;
        return;
    }
    ++l.accesses;
    l.sectors += static_cast<int64_t>(touched.size());
    if (!tracing) return;
    for (const uintptr_t sector : touched)
        trace.insert(
            trace.end(), {static_cast<int64_t>(launched.size()) - 1, block, static_cast<int64_t>(time), traced_accesses,
                          static_cast<int64_t>(sector)});
    ++traced_accesses;
}

void settle(uint32_t block) {
    if (launched.empty()) return;
    for (auto& instructions : of_warp) {
        for (Instruction& i : instructions) {
            for (uint32_t time = 0; time < i.times; ++time) {
                settle_access(launched.back(), i.shared, block, time, i.accesses[time].units);
                i.accesses[time].clear();
            }
            if (i.times > 0) i.executed.fill(0);
            i.times = 0;
        }
    }
}

}  // namespace

std::vector<Launch>& counted_launches() { return launched; }

void count_launch(const char* kernel, const Config& config, int line) {
    settle(counted_block);
    of_warp.clear();
    launched.push_back({kernel, line, config.grid, config.block});
    counted_block = ~0u;
}

void count_block(unsigned block, size_t shared_bytes) {
    settle(block);
    Launch& l = launched.back();
    ++l.blocks;
    l.shared_bytes = std::max(l.shared_bytes, static_cast<int64_t>(shared_bytes));
}

void count(const Array& array, uintptr_t address, size_t bytes, Access access, uint32_t site) {
    if (here.block != counted_block) settle(counted_block), counted_block = here.block;
    Launch& l = launched.back();
    const bool shared = array.space == Space::Shared;
    if (!shared) {
        (access == Access::Read ? l.bytes_read : l.bytes_written) += static_cast<int64_t>(bytes);
    }
    const unsigned warp = here.thread / kWarp;
    if (of_warp.size() <= warp) of_warp.resize(warp + 1);
    const size_t at = 2 * size_t{site} + shared;  // a copy has one site for both memories
    if (of_warp[warp].size() <= at) of_warp[warp].resize(at + 1);
    Instruction& i = of_warp[warp][at];
    i.shared = shared;
    const uint32_t time = i.executed[here.thread % kWarp]++;
    i.times = std::max(i.times, time + 1);
    if (i.accesses.size() <= time) i.accesses.resize(time + 1);
    const uintptr_t unit = shared ? kWord : kSector;
    for (uintptr_t u = address / unit; u <= (address + bytes - 1) / unit; ++u) i.accesses[time].add(u);
}

}  // namespace cudasim

extern "C" void cudasim_trace(int on) {
    cudasim::tracing = on != 0;
    if (on) cudasim::trace.clear(), cudasim::traced_accesses = 0;
}

extern "C" int64_t cudasim_traced(const int64_t** numbers) {
    *numbers = cudasim::trace.data();
    return static_cast<int64_t>(cudasim::trace.size());
}
