// Races, and reads of memory that was not written.
//
// Two accesses to the same bytes race if they are of different threads, one of them writes, not both are strong, and
// nothing orders them. Strong are atomic operations and, in global memory, volatile accesses. What orders accesses:
// within a block a barrier, within a warp a __syncwarp of both lanes, between blocks the end of a launch, a barrier of
// the grid, and fences around strong accesses to one address: a block that finds what another block's access left
// there, and has a __threadfence or a barrier after it, comes after what that block's threads did before a
// __threadfence of theirs, if that was before the access.
//
// A plain read does not race with atomic operations if the thread's next access is an atomicCAS there: that is how the
// CUDA C++ programming guide writes atomic functions of one's own.
#include <map>
#include <unordered_map>

#include "host.h"
#include "state.h"

namespace cudasim {

bool watching = true;

namespace {

// A strong write: the epoch in which it was, and that of the thread's last fence before it.
struct Release {
    uint32_t block, epoch;
    uint16_t thread;
    int64_t fence;  // -1 without one
};

std::unordered_map<uintptr_t, std::vector<Release>> published;     // in this launch, by the address of the write
std::unordered_map<uint64_t, std::vector<uint32_t>> fences;        // of the threads: their epochs
std::unordered_map<uint32_t, std::vector<Release>> pending, seen;  // by blocks: found, and found before a fence
std::map<Site, uint32_t> numbers;
std::vector<const Site*> sites;

struct Cached {
    const void *from = nullptr, *caller = nullptr;
    uint32_t number = 0;
};
Cached cache[1024];

constexpr uint32_t kStrong = 1u << 31;  // in the number of a visit's site

uint64_t key(const Position& p) { return uint64_t{p.block} << 16 | p.thread; }

// Whether the running thread comes after a visit of this launch.
bool follows(const Visit& visit, const Position& me) {
    if (visit.block == me.block) {
        if (visit.epoch < me.epoch) return true;
        if (visit.thread == me.thread && (visit.lanes & (visit.lanes - 1)) == 0) return true;
        if (visit.thread != Visit::kSeveral && visit.thread / kWarp == me.thread / kWarp) {
            bool all = true;
            for (unsigned lane = 0; lane < kWarp; ++lane)
                all &= !(visit.lanes >> lane & 1) || lane == me.thread % kWarp || met(lane, visit.tick);
            if (all) return true;
        }
    }
    const auto mine = seen.find(me.block);
    if (mine == seen.end()) return false;
    const auto own = fences.find(key(visit));  // of the thread that was there: its fences after the visit count
    const bool fenced = own != fences.end() && own->second.size() > visit.fences;
    for (const Release& r : mine->second) {
        if (r.block != visit.block) continue;
        if (r.fence >= 0 && (visit.epoch < r.fence || visit.thread == r.thread)) return true;
        if (fenced && (own->second[visit.fences] < r.epoch || visit.thread == r.thread)) return true;
    }
    return false;
}

// The running thread's last access, if that was a plain read; and the race that it is unless an atomicCAS follows.
struct LastRead {
    Array* array = nullptr;
    uintptr_t address = 0;
    std::string race;
    Site at, other;
};
LastRead last_read;

void race(
    const char* verb, const Array& array, uintptr_t address, size_t bytes, const char* did, const Visit& other,
    const Position& me, const void* from) {
    const bool same_block = other.block == me.block;
    std::string who = same_block ? "" : "block " + block_in_words(other.block) + ", ";
    who += other.thread == Visit::kSeveral ? "several threads" : "thread " + thread_in_words(other.thread);
    const std::string what = std::string(verb) + " " + (array.space == Space::Shared ? "shared " : "") +
                             array.in_words(address, bytes) + ", which " + who + " " + did + ", without " +
                             (same_block ? "a barrier in between" : "an order between the two blocks");
    const Site& other_site = site_of(other.site & ~kStrong);
    if (last_read.array == nullptr || !(other.site & kStrong)) fault(what, from, other_site);
    last_read.race = what, last_read.at = site(from), last_read.other = other_site;
}

}  // namespace

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

Site last_write(Array& array, uintptr_t address) {
    const Visit& write = array.at(address).write;
    return write.launch == 0 ? Site{} : site_of(write.site & ~kStrong);
}

void forget_order() {
    published.clear();
    fences.clear();
    pending.clear();
    seen.clear();
}

void watch_fence() {
    const Position me = position();
    fences[key(me)].push_back(me.epoch);
    watch_barrier(me.block);
}

void watch_barrier(uint32_t block) {
    if (const auto read = pending.find(block); read != pending.end()) {
        auto& mine = seen[block];
        mine.insert(mine.end(), read->second.begin(), read->second.end());
        pending.erase(read);
    }
}

void watch_wait() {
    if (!last_read.race.empty()) fault(last_read.race, last_read.at, last_read.other);
    last_read.array = nullptr;
}

void verify(const void* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (last_read.array == nullptr || last_read.address != address) return;
    Visit& read = last_read.array->at(address).read;
    if (read.thread == position().thread) read = {};
    last_read = {};
}

void watch(Array& array, uintptr_t address, size_t bytes, Access access, const void* from, bool is_volatile) {
    watch_wait();
    if (!watching && array.space == Space::Global) return;
    if (array.space == Space::Constant) return;
    const Position here = position();
    const bool read = access == Access::Read, atomic = access == Access::Atomic;
    const bool strong = atomic || (is_volatile && array.space == Space::Global);
    if (strong) {
        std::vector<Release>& all = published[address];
        if (!all.empty() && (read || atomic)) {
            auto& mine = pending[here.block];
            mine.insert(mine.end(), all.begin(), all.end());
        }
        if (!fences.empty() && !read) {
            const auto own = fences.find(key(here));
            all.push_back(
                {here.block, here.epoch, here.thread, own == fences.end() ? -1 : int64_t{own->second.back()}});
        }
    }
    if (read && !strong) last_read.array = &array, last_read.address = address;
    if (array.granule > bytes) array.refine(bytes);
    while (array.granule > 1 && ((address - array.begin) % array.granule || bytes % array.granule))
        array.refine(array.granule / 2);
    if (!array.known && array.written.empty()) array.written.resize((array.size() + array.granule - 1) / array.granule);
    Visit me;
    static_cast<Position&>(me) = here;
    me.lanes = 1u << here.thread % kWarp;
    me.site = number_of(from) | (strong ? kStrong : 0);
    if (const auto own = fences.find(key(here)); own != fences.end())
        me.fences = static_cast<uint16_t>(own->second.size());
    const bool whole_block = array.space == Space::Shared;
    for (uintptr_t a = address; a < address + bytes; a += array.granule) {
        const size_t i = (a - array.begin) / array.granule;
        if (!array.known) {
            if (!read && !atomic) {
                array.written[i] = true;
            } else if (!array.written[i]) {
                fault(
                    std::string(read ? "reads " : "updates ") + (whole_block ? "shared " : "") +
                        array.in_words(address, bytes) + ", which was never written",
                    from);
            }
        }
        Element& e = array.at(a);
        const auto concurrent = [&](const Visit& v) { return v.launch == here.launch && !follows(v, here); };
        const auto both_strong = [&](const Visit& v) { return strong && v.site & kStrong; };
        if (!both_strong(e.write) && concurrent(e.write))
            race(
                read     ? "reads"
                : atomic ? "updates"
                         : "writes",
                array, address, bytes, e.write.site & kStrong ? "updated" : "wrote", e.write, here, from);
        if (!read && !both_strong(e.read) && concurrent(e.read))
            race(atomic ? "updates" : "writes", array, address, bytes, "read", e.read, here, from);
        if (!read) {
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
