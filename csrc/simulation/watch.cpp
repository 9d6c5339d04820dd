// Races, and reads of uninitialized memory.
//
// Two accesses to the same bytes race if they are of different threads, one of them writes, not both are strong, and
// nothing orders them. Strong accesses are atomic operations and, in global memory, volatile accesses. Accesses are
// ordered within a block by a barrier, within a warp by a __syncwarp of both lanes, and between blocks by the end of a
// launch, a barrier of the grid, or fences around strong accesses to one address: if block B reads the value of a
// strong access of block A, and has a __threadfence or a barrier after that, then B comes after everything that A's
// threads did before their own __threadfence, if that was before A's access.
//
// A plain read does not race with atomic operations if the thread's next access is an atomicCAS there: the CUDA C++
// programming guide builds other atomic functions in this way. Stores of one value to one place do not race, unless the
// simulation is strict, because the result does not depend on their order.
#include <map>
#include <unordered_map>

#include "host.h"
#include "state.h"

namespace cudasim {

bool watching = true, strict = false;

namespace {

// An atomic operation: its epoch, and the epoch of the thread's last fence before it.
struct Release {
    uint32_t block, epoch;
    uint16_t thread;
    int64_t fence;  // -1 without one
};

std::unordered_map<uintptr_t, std::vector<Release>> published;     // in this launch, by the address of the write
std::unordered_map<uint64_t, std::vector<uint32_t>> fences;        // by thread: the epochs of its fences
std::unordered_map<uint32_t, std::vector<Release>> pending, seen;  // by block: read, and read before a fence
std::map<Site, uint32_t> numbers;
std::vector<const Site*> sites;

struct Cached {
    const void *from = nullptr, *caller = nullptr;
    uint32_t number = 0;
};
Cached cache[1024];

constexpr uint32_t kStrong = 1u << 31;  // in the number of a visit's site

uint64_t key(const Position& p) { return uint64_t{p.block} << 16 | p.thread; }

// Whether a visit of this launch is unordered with the running thread.
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
    const auto own = fences.find(key(visit));  // the visiting thread's fences; those after the visit count
    const bool fenced = own != fences.end() && own->second.size() > visit.fences;
    for (const Release& r : mine->second) {
        if (r.block != visit.block) continue;
        if (r.fence >= 0 && (visit.epoch < r.fence || visit.thread == r.thread)) return false;
        if (fenced && (own->second[visit.fences] < r.epoch || visit.thread == r.thread)) return false;
    }
    return true;
}

// The last access of the running thread, if it may be a race. It is no race if it was a plain read before an atomicCAS,
// or a store that leaves the value unchanged.
struct Doubt {
    Array* array = nullptr;
    uintptr_t address = 0;
    std::string race, before;  // before: the old bytes, for a store
    Site at, other;
};
Doubt doubt;

}  // namespace

void settle() {
    if (doubt.array == nullptr) return;
    doubt.array = nullptr;
    if (doubt.race.empty()) return;
    const Doubt last = std::move(doubt);
    const bool changed =
        last.before.empty() ||
        std::memcmp(reinterpret_cast<const void*>(last.address), last.before.data(), last.before.size());
    if (changed) fault(last.race, last.at, last.other);
}

void verify(const void* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (doubt.array == nullptr || doubt.address != address || !doubt.before.empty()) return;
    Visit& read = doubt.array->at((address - doubt.array->begin) / doubt.array->granule).read;
    if (read.thread == here.thread) read = {};
    doubt.array = nullptr;
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
    doubt.array = nullptr;
    published.clear();
    fences.clear();
    pending.clear();
    seen.clear();
}

void watch_fence() {
    fences[key(here)].push_back(here.epoch);
    watch_barrier(here.block);
}

void watch_barrier(uint32_t block) {
    if (const auto found = pending.find(block); found != pending.end()) {
        auto& mine = seen[block];
        mine.insert(mine.end(), found->second.begin(), found->second.end());
        pending.erase(found);
    }
}

Site last_write(Array& array, uintptr_t address) {
    const Visit& write = array.at((address - array.begin) / array.granule).write;
    return write.launch == 0 ? Site{} : site_of(write.site & ~kStrong);
}

void watch(
    Array& array, uintptr_t address, size_t bytes, Access access, const void* from, uint32_t number, bool is_volatile) {
    settle();
    if (!watching && array.space == Space::Global) return;
    const bool read = access == Access::Read, atomic = access == Access::Atomic, store = access == Access::Write;
    const bool strong = atomic || (is_volatile && array.space == Space::Global);
    if (strong) {
        std::vector<Release>& all = published[address];
        if (!all.empty() && !store) {
            auto& mine = pending[here.block];
            mine.insert(mine.end(), all.begin(), all.end());
        }
        if (!fences.empty() && !read) {
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
    me.site = number | (strong ? kStrong : 0);
    if (read && !strong) doubt.array = &array, doubt.address = address, doubt.race.clear(), doubt.before.clear();

    // A race with another visit, unless the next access or the end of this one settles it.
    const auto race = [&](const char* did, const Visit& other) {
        const bool same_block = other.block == here.block;
        std::string who = same_block ? "" : "block " + block_in_words(other.block) + ", ";
        who += other.thread == Visit::kSeveral ? "several threads" : "thread " + thread_in_words(other.thread);
        const std::string what = std::string(
                                     read     ? "reads "
                                     : atomic ? "updates "
                                              : "writes ") +
                                 (array.space == Space::Shared ? "shared " : "") + array.in_words(address, bytes) +
                                 ", which " + who + " " + did + ", without " +
                                 (same_block ? "a barrier in between" : "an order between the two blocks");
        const Site& other_site = site_of(other.site & ~kStrong);
        const bool other_strong = other.site & kStrong, wrote = std::strcmp(did, "read") != 0;
        const bool may_be_verified = read && !strong && other_strong;
        const bool may_be_equal = store && wrote && !other_strong && !strict;
        if (!may_be_verified && !may_be_equal) fault(what, site(from), other_site);
        if (!doubt.race.empty() && doubt.array != nullptr) return;
        doubt = {&array, address, what, {}, site(from), other_site};
        if (may_be_equal) doubt.before.assign(reinterpret_cast<const char*>(address), bytes);
    };
    for (size_t i = offset >> shift; i < (offset + bytes) >> shift; ++i) {
        Element& e = array.at(i);
        if (!store && e.write.launch == 0 && !array.known && !array.is_written(i))
            fault(
                std::string(read ? "reads " : "updates ") + (array.space == Space::Shared ? "shared " : "") +
                    array.in_words(address, bytes) + ", which was never written",
                from);
        const auto both_strong = [&](const Visit& v) { return strong && v.site & kStrong; };
        if (!both_strong(e.write) && concurrent(e.write)) race(e.write.site & kStrong ? "updated" : "wrote", e.write);
        if (!read) {
            if (!both_strong(e.read) && concurrent(e.read)) race("read", e.read);
            e.write = me;
        } else if (!concurrent(e.read)) {
            e.read = me;
        } else if (e.read.block == here.block && e.read.thread != Visit::kSeveral) {
            if (!strong) e.read.site = me.site;
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
