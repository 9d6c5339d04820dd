// Races, and reads of memory that was not written.
//
// Two accesses to the same bytes race if they are of different threads, one of them writes, not both are atomic, and
// nothing orders them. Stores of one value to one place do not: it is there, whichever comes last. What orders
// accesses: within a block a barrier, within a warp a __syncwarp of both lanes, between blocks the end of a launch, a
// barrier of the grid, and fences around atomic operations on one address: a block that finds what another block's
// operation left there, and has a __threadfence after it, comes after what that block's threads did before a
// __threadfence of theirs, if that was before the operation.
#include <map>
#include <unordered_map>

#include "host.h"
#include "state.h"

namespace cudasim {

bool watching = true;

namespace {

// An atomic operation: the epoch in which it was, and that of the thread's last fence before it.
struct Release {
    uint32_t block, epoch;
    uint16_t thread;
    int64_t fence;  // -1 without one
};

std::unordered_map<uintptr_t, std::vector<Release>> published;     // in this launch, by the address of the operation
std::unordered_map<uint64_t, std::vector<uint32_t>> fences;        // of the threads: their epochs
std::unordered_map<uint32_t, std::vector<Release>> pending, seen;  // by blocks: found, and found before a fence
std::map<Site, uint32_t> numbers;
std::vector<const Site*> sites;

struct Cached {
    const void *from = nullptr, *caller = nullptr;
    uint32_t number = 0;
};
Cached cache[1024];

constexpr uint32_t kAtomicSite = 1u << 31;  // in the number of a visit's site

uint64_t key(const Position& p) { return uint64_t{p.block} << 16 | p.thread; }

// Whether nothing orders the running thread and a visit of this launch.
bool concurrent(const Visit& visit) {
    if (visit.launch != here.launch) return false;
    if (visit.block == here.block) {
        if (visit.epoch < here.epoch) return false;
        if (visit.thread != Visit::kSeveral && visit.thread / kWarp == here.thread / kWarp) {
            uint32_t others = visit.lanes & ~(1u << here.thread % kWarp);
            while (others != 0 && here.met[__builtin_ctz(others)] > visit.tick) others &= others - 1;
            if (others == 0) return false;
        }
    }
    const auto mine = seen.find(here.block);
    if (mine == seen.end()) return true;
    const auto own = fences.find(key(visit));  // of the thread that was there: its fences after the visit count
    const bool fenced = own != fences.end() && own->second.size() > visit.fences;
    for (const Release& r : mine->second) {
        if (r.block != visit.block) continue;
        if (r.fence >= 0 && (visit.epoch < r.fence || visit.thread == r.thread)) return false;
        if (fenced && (own->second[visit.fences] < r.epoch || visit.thread == r.thread)) return false;
    }
    return true;
}

[[noreturn]] void race(
    const char* verb, const Array& array, uintptr_t address, size_t bytes, const char* did, const Visit& other,
    const Site& at) {
    const bool same_block = other.block == here.block;
    std::string who = same_block ? "" : "block " + block_in_words(other.block) + ", ";
    who += other.thread == Visit::kSeveral ? "several threads" : "thread " + thread_in_words(other.thread);
    fault(
        std::string(verb) + " " + (array.space == Space::Shared ? "shared " : "") + array.in_words(address, bytes) +
            ", which " + who + " " + did + ", without " +
            (same_block ? "a barrier in between" : "an order between the two blocks"),
        at, site_of(other.site & ~kAtomicSite));
}

// The running thread's last store, where it is a race unless it stores what is there.
struct Doubtful {
    const Array* array = nullptr;
    uintptr_t address = 0;
    uint32_t site = 0;
    Visit other;
    std::string before;
};
Doubtful doubtful;

}  // namespace

void settle_store() {
    if (doubtful.array == nullptr) return;
    const Doubtful store = std::move(doubtful);
    doubtful.array = nullptr;
    const size_t bytes = store.before.size();
    if (std::memcmp(reinterpret_cast<const void*>(store.address), store.before.data(), bytes) != 0)
        race("writes", *store.array, store.address, bytes, "wrote", store.other, site_of(store.site));
}

uint32_t number_of(const void* from) {
    const void* const caller = caller_of_function();
    Cached& cached = cache[(reinterpret_cast<uintptr_t>(from) * 31 ^ reinterpret_cast<uintptr_t>(caller)) / 4 % 1024];
    if (cached.from == from && cached.caller == caller) return cached.number;
    const auto [at, is_new] = numbers.try_emplace(site(from), static_cast<uint32_t>(sites.size()));
    if (is_new) sites.push_back(&at->first);
    cached = {from, caller, at->second};
    return at->second;
}

const Site& site_of(uint32_t number) { return *sites[number]; }
uint32_t number_of_sites() { return static_cast<uint32_t>(sites.size()); }

void forget_order() {
    doubtful.array = nullptr;
    published.clear();
    fences.clear();
    pending.clear();
    seen.clear();
}

void watch_fence() {
    fences[key(here)].push_back(here.epoch);
    if (const auto read = pending.find(here.block); read != pending.end()) {
        auto& mine = seen[here.block];
        mine.insert(mine.end(), read->second.begin(), read->second.end());
        pending.erase(read);
    }
}

void watch(Array& array, uintptr_t address, size_t bytes, Access access, const void* from, uint32_t site_number) {
    if (!watching && array.space == Space::Global) return;
    const bool read = access == Access::Read, atomic = access == Access::Atomic;
    if (atomic) {
        std::vector<Release>& all = published[address];
        if (!all.empty()) {
            auto& mine = pending[here.block];
            mine.insert(mine.end(), all.begin(), all.end());
        }
        if (!fences.empty()) {
            const auto own = fences.find(key(here));
            all.push_back(
                {here.block, here.epoch, here.thread, own == fences.end() ? -1 : int64_t{own->second.back()}});
        }
    }
    const uintptr_t offset = address - array.begin;
    if (array.granule > bytes) array.refine(bytes);
    while ((offset | bytes) & (array.granule - 1)) array.refine(array.granule / 2);
    const int shift = __builtin_ctzll(array.granule);
    Visit me;
    static_cast<Position&>(me) = here;
    me.lanes = 1u << here.thread % kWarp;
    if (!fences.empty())
        if (const auto own = fences.find(key(here)); own != fences.end())
            me.fences = static_cast<uint16_t>(own->second.size());
    me.site = site_number | (atomic ? kAtomicSite : 0);
    const auto race_with = [&](const char* did, const Visit& other) {
        const char* const verb = read ? "reads" : atomic ? "updates" : "writes";
        race(verb, array, address, bytes, did, other, site(from));
    };
    for (size_t i = offset >> shift; i < (offset + bytes) >> shift; ++i) {
        Element& e = array.at(i);
        if (access != Access::Write && e.write.launch == 0 && !array.known && !array.is_written(i))
            fault(
                std::string(read ? "reads " : "updates ") + (array.space == Space::Shared ? "shared " : "") +
                    array.in_words(address, bytes) + ", which was never written",
                from);
        const bool after_atomic = e.write.site & kAtomicSite;
        if (!(atomic && after_atomic) && concurrent(e.write)) {
            if (access != Access::Write || after_atomic) race_with(after_atomic ? "updated" : "wrote", e.write);
            if (doubtful.array == nullptr)
                doubtful = {&array, address, site_number, e.write, {reinterpret_cast<const char*>(address), bytes}};
        }
        if (!read) {
            if (concurrent(e.read)) race_with("read", e.read);
            e.write = me;
        } else if (!concurrent(e.read)) {
            e.read = me;
        } else if (e.read.block == here.block && e.read.thread != Visit::kSeveral) {
            if (e.read.thread / kWarp != here.thread / kWarp) {
                e.read.thread = Visit::kSeveral;
                e.read.epoch = here.epoch;
            } else {
                e.read.lanes |= me.lanes;
                e.read.tick = here.tick;
            }
        }
    }
}

}  // namespace cudasim
