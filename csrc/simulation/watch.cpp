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

[[noreturn]] void race(
    const char* verb, const Array& array, uintptr_t address, size_t bytes, const char* did, const Visit& other,
    const Position& me, const Site& at) {
    const bool same_block = other.block == me.block;
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
    Visit other, me;
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
        race("writes", *store.array, store.address, bytes, "wrote", store.other, store.me, site_of(store.me.site));
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
    const Position me = position();
    fences[key(me)].push_back(me.epoch);
    if (const auto read = pending.find(me.block); read != pending.end()) {
        auto& mine = seen[me.block];
        mine.insert(mine.end(), read->second.begin(), read->second.end());
        pending.erase(read);
    }
}

void watch(Array& array, uintptr_t address, size_t bytes, Access access, const void* from) {
    if (!watching && array.space == Space::Global) return;
    if (array.space == Space::Constant) return;
    const Position here = position();
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
    if (array.granule > bytes) array.refine(bytes);
    while (array.granule > 1 && ((address - array.begin) % array.granule || bytes % array.granule))
        array.refine(array.granule / 2);
    if (!array.known && array.written.empty()) array.written.resize((array.size() + array.granule - 1) / array.granule);
    Visit me;
    static_cast<Position&>(me) = here;
    me.lanes = 1u << here.thread % kWarp;
    me.site = number_of(from);
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
        const bool both_atomic = atomic && e.write.site & kAtomicSite;
        const bool both_store = !read && !atomic && !(e.write.site & kAtomicSite);
        if (both_store && concurrent(e.write)) {
            if (doubtful.array == nullptr)
                doubtful = {&array, address, e.write, me, {reinterpret_cast<const char*>(address), bytes}};
        } else if (!both_atomic && concurrent(e.write)) {
            race(
                read     ? "reads"
                : atomic ? "updates"
                         : "writes",
                array, address, bytes, e.write.site & kAtomicSite ? "updated" : "wrote", e.write, here, site(from));
        }
        if (!read && concurrent(e.read))
            race(atomic ? "updates" : "writes", array, address, bytes, "read", e.read, here, site(from));
        if (!read) {
            e.write = me;
            if (atomic) e.write.site |= kAtomicSite;
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
