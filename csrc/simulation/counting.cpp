// What a launch moves: bytes, accesses of warps, the 32-byte sectors that these touch, and conflicts between the banks
// of shared memory. The lanes of a warp access memory together: those that execute an instruction for the same time.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "host.h"
#include "state.h"

namespace cudasim {
namespace {

constexpr uintptr_t kSector = 32;
constexpr unsigned kBanks = 32, kWord = 4;

// The sectors of global memory, or the words of shared memory, that one access of a warp touches; each once.
using Touched = std::vector<uintptr_t>;

struct Instruction {
    bool shared;
    std::array<uint32_t, kWarp> executed{};  // how often, by the lanes
    std::vector<Touched> accesses;
};

std::vector<Launch>& launched = *new std::vector<Launch>;           // outlives the report at the exit
std::vector<std::unordered_map<const void*, Instruction>> of_warp;  // of the running block
bool tracing = false;
std::vector<int64_t> trace;  // (accesses of a warp, sectors): launch, block, time, access, sector
int64_t traced_accesses;
uint32_t counted_block = ~0u;

void settle(uint32_t block) {
    if (launched.empty()) return;
    Launch& l = launched.back();
    for (auto& instructions : of_warp) {
        for (auto& [from, i] : instructions) {
            for (size_t time = 0; time < i.accesses.size(); ++time) {
                const Touched& touched = i.accesses[time];
                if (i.shared) {
                    std::array<int, kBanks> words{};
                    for (const uintptr_t word : touched) ++words[word % kBanks];
                    const int turns = *std::max_element(words.begin(), words.end());
                    l.conflicts += turns - static_cast<int>((touched.size() + kBanks - 1) / kBanks);
                    ++l.shared_accesses;
                    continue;
                }
                ++l.accesses;
                l.sectors += static_cast<int64_t>(touched.size());
                if (!tracing) continue;
                for (const uintptr_t sector : touched)
                    trace.insert(
                        trace.end(), {static_cast<int64_t>(launched.size()) - 1, block, static_cast<int64_t>(time),
                                      traced_accesses, static_cast<int64_t>(sector)});
                ++traced_accesses;
            }
        }
    }
    of_warp.clear();
}

}  // namespace

std::vector<Launch>& counted_launches() { return launched; }

void count_launch(const char* kernel, const Config& config, int line) {
    settle(counted_block);
    launched.push_back({kernel, line, config.grid, config.block});
    counted_block = ~0u;
}

void count_block(unsigned block, size_t shared_bytes) {
    settle(block);
    Launch& l = launched.back();
    ++l.blocks;
    l.shared_bytes = std::max(l.shared_bytes, static_cast<int64_t>(shared_bytes));
}

void count(const Array& array, uintptr_t address, size_t bytes, Access access, const void* from) {
    if (array.space == Space::Constant) return;
    const Position here = position();
    if (here.block != counted_block) settle(counted_block), counted_block = here.block;
    Launch& l = launched.back();
    const bool shared = array.space == Space::Shared;
    if (!shared) {
        (access == Access::Read ? l.bytes_read : l.bytes_written) += static_cast<int64_t>(bytes);
    }
    if (of_warp.size() <= here.thread / kWarp) of_warp.resize(here.thread / kWarp + 1);
    Instruction& i = of_warp[here.thread / kWarp][from];
    i.shared = shared;
    const uint32_t time = i.executed[here.thread % kWarp]++;
    if (i.accesses.size() <= time) i.accesses.resize(time + 1);
    Touched& touched = i.accesses[time];
    const uintptr_t unit = shared ? kWord : kSector;
    for (uintptr_t u = address / unit; u <= (address + bytes - 1) / unit; ++u)
        if (std::find(touched.rbegin(), touched.rend(), u) == touched.rend()) touched.push_back(u);
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
