#include "watch.h"

#ifdef SBNREF_RECORDING

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cudasim.h"
#include "recording.h"

namespace cudasim {
namespace {

using Chain = std::vector<const void*>;

// An access, and when it was: in which launch, after how many barriers of its block, and as which event of all.
struct Visit {
    unsigned launch = 0, block = 0, thread = 0, epoch = 0;
    uint64_t time = 0;
    const Chain* chain = nullptr;

    bool is_of_now() const;
};

struct Element {
    Visit write, read;
    const Chain* last = nullptr;  // that led to the last write or ticket
};

// What a block had written when it took a ticket: all before the fence of the thread that took it.
struct Release {
    unsigned block, thread, epoch;
    uint64_t time;
};

struct Named {
    std::string name;
    uintptr_t begin, end;
    int bytes;     // of an element
    bool written;  // before the first launch
};

bool watching = false;
unsigned launch_number;  // from 1 on
uint64_t now;
std::vector<Named> arrays;
std::unordered_map<uintptr_t, Element> elements;
std::map<Chain, int> chains;                             // that led to accesses
std::unordered_map<uintptr_t, std::vector<Release>> at;  // a counter: the tickets taken from it in this launch
std::vector<Release> pending, seen;                      // by the running block: those before its ticket; after a fence
std::unordered_map<unsigned, Release> fences;            // of the running block's threads, the last
std::unordered_map<unsigned, void*> waits;               // frames of the running block's threads that wait
std::vector<int64_t> refused;                            // frames of what was refused, 0, those of the other access, 0

bool Visit::is_of_now() const { return launch == launch_number; }

const Named* named(uintptr_t address) {
    for (const Named& array : arrays)
        if (address >= array.begin && address < array.end) return &array;
    return nullptr;
}

std::string in_words(uintptr_t address) {
    const Named* const array = named(address);
    if (array == nullptr) return "global memory";
    return array->name + "[" + std::to_string((address - array->begin) / array->bytes) + "]";
}

// Whether the running thread comes after a visit of this launch.
bool follows(const Visit& visit, unsigned epoch) {
    if (visit.block == blockIdx.x) return visit.thread == threadIdx.x || visit.epoch < epoch;
    for (const Release& r : seen)
        if (r.block == visit.block && visit.time < r.time && (visit.thread == r.thread || visit.epoch < r.epoch))
            return true;
    return false;
}

void note(const Chain& chain) {
    for (const void* address : chain) refused.push_back(offset_in_library(address));
    refused.push_back(0);
}

[[noreturn]] void race(const char* verb, uintptr_t address, const char* did, const Visit& other) {
    const bool same_block = other.block == blockIdx.x;
    const std::string who =
        (same_block ? "" : "block " + std::to_string(other.block) + ", ") + "thread " + std::to_string(other.thread);
    note(calls());
    note(*other.chain);
    fail(
        std::string(verb) + " " + in_words(address) + ", which " + who + " " + did + ", without " +
        (same_block ? "a barrier in between" : "an order between the two blocks"));
}

}  // namespace

void watch_launch() {
    if (!watching) return;
    ++launch_number;
    at.clear();
}

void watch_block() {
    pending.clear();
    seen.clear();
    fences.clear();
    waits.clear();
}

void watch(uintptr_t address, int count, int bytes, Access access, unsigned epoch) {
    if (!watching) return;
    ++now;
    const Chain* const chain = &chains.try_emplace(calls(), 0).first->first;
    if (access == Access::Ticket) {
        elements[address].last = chain;
        std::vector<Release>& taken = at[address];
        pending.insert(pending.end(), taken.begin(), taken.end());
        const auto fence = fences.find(threadIdx.x);
        if (fence != fences.end()) taken.push_back(fence->second);
        return;
    }
    const Visit me{launch_number, blockIdx.x, threadIdx.x, epoch, now, chain};
    for (int k = 0; k < count; ++k, address += bytes) {
        Element& e = elements[address];
        const bool read = access == Access::Read;
        if (e.write.is_of_now() && !follows(e.write, epoch)) race(read ? "reads" : "writes", address, "wrote", e.write);
        if (!read && e.read.is_of_now() && !follows(e.read, epoch)) race("writes", address, "read", e.read);
        if (read && e.write.launch == 0) {
            const Named* const array = named(address);
            if (array != nullptr && !array->written) {
                note(calls());
                fail("reads " + in_words(address) + ", which nobody wrote");
            }
        }
        // Of several readers the one that is kept is another than the next writer may be.
        if (!read)
            e.write = me, e.last = chain;
        else if (!e.read.is_of_now() || follows(e.read, epoch))
            e.read = me;
    }
}

void watch_fence() {
    if (!watching) return;
    ++now;
    fences[threadIdx.x] = {blockIdx.x, threadIdx.x, current_epoch(), now};
    seen.insert(seen.end(), pending.begin(), pending.end());
    pending.clear();
}

void watch_wait() {
    if (watching) waits[threadIdx.x] = __builtin_frame_address(0);
}

void note_stuck(int thread) {
    if (watching) note(calls(waits[thread], thread));
}

void note_refusal() {
    if (watching && refused.empty()) note(calls());
}

}  // namespace cudasim

using namespace cudasim;

// Begins to watch, and forgets what was seen before.
extern "C" void cudasim_start_watching() {
    watching = true;
    launch_number = 0;
    now = 0;
    arrays.clear();
    elements.clear();
    chains.clear();
    refused.clear();
}

extern "C" void cudasim_stop_watching() { watching = false; }

// Calls memory by a name: `size` elements of `bytes` each, which were written before or not.
extern "C" void cudasim_name(const char* name, const void* array, int64_t size, int bytes, int written) {
    const auto begin = reinterpret_cast<uintptr_t>(array);
    arrays.push_back({name, begin, begin + size * bytes, bytes, written != 0});
}

// Has cudasim_refused tell the calls that led to the last write to an element, or to its last ticket.
extern "C" void cudasim_blame(const void* element) {
    refused.clear();
    const auto found = elements.find(reinterpret_cast<uintptr_t>(element));
    if (found != elements.end() && found->second.last != nullptr) note(*found->second.last);
}

// The calls that led to what was refused, and those that led to the access that it collided with; 0 ends either.
extern "C" int64_t cudasim_refused(const int64_t** numbers) {
    *numbers = refused.data();
    return static_cast<int64_t>(refused.size());
}

#endif
