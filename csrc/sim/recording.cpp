#include "recording.h"

#ifdef SBNREF_RECORDING

#include <dlfcn.h>

#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "cudasim.h"

namespace cudasim {
namespace {

constexpr size_t kMostActs = 1 << 18;

bool recording = false;
int64_t launches;
std::vector<const void*> bases;  // of the threads: the frames at which their kernels begin
std::vector<int64_t> acts;       // (acts of threads, 8): launch, block, thread, act, site, array, offset, bytes
std::map<std::vector<const void*>, int64_t> sites;                        // the calls that lead there
std::map<std::tuple<const void*, std::string, int64_t>, int64_t> arrays;  // address or name and size
std::vector<int64_t> frames;                                              // of the sites, in the library; 0 ends one
std::ostringstream tables;
std::string tables_text;

// Where this library was loaded.
uintptr_t library() {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&record_launch), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
}

int64_t number_of_array(const void* address, const std::string& name, int64_t size, int bytes) {
    const auto [at, is_new] = arrays.try_emplace({address, name, address ? 0 : size}, arrays.size());
    if (is_new)
        tables << "array\t" << name << '\t' << reinterpret_cast<uintptr_t>(address) << '\t' << size << '\t' << bytes
               << '\n';
    return at->second;
}

}  // namespace

std::vector<const void*> calls() { return calls(__builtin_frame_address(0), threadIdx.x); }

std::vector<const void*> calls(void* from, unsigned thread) {
    std::vector<const void*> found;
    for (auto* frame = static_cast<void**>(from); frame != bases[thread]; frame = static_cast<void**>(*frame))
        found.push_back(frame[1]);
    return found;
}

int64_t offset_in_library(const void* address) { return reinterpret_cast<uintptr_t>(address) - library(); }

void record_launch(const char* kernel) {
    bases.assign(blockDim.x, nullptr);
    if (!recording) return;
    ++launches;
    tables << "launch\t" << kernel << '\t' << gridDim.x << '\t' << blockDim.x << "\t\n";
}

void record_thread(const void* frame) { bases[threadIdx.x] = frame; }

void record(Act act, const void* array, const char* name, int64_t size, int64_t offset, int bytes) {
    if (!recording) return;
    if (acts.size() >= 8 * kMostActs) fail("does more than a recording holds");
    const std::vector<const void*> chain = calls();
    const auto [site, is_new] = sites.try_emplace(chain, sites.size());
    if (is_new) {
        for (const void* address : chain) frames.push_back(offset_in_library(address));
        frames.push_back(0);
    }
    const int64_t number = size > 0 ? number_of_array(array, name, size, bytes) : -1;
    acts.insert(
        acts.end(),
        {launches - 1, blockIdx.x, threadIdx.x, static_cast<int>(act), site->second, number, offset, bytes});
}

}  // namespace cudasim

using namespace cudasim;

extern "C" void cudasim_start_recording() {
    recording = true;
    launches = 0;
    acts.clear();
    sites.clear();
    arrays.clear();
    frames.clear();
    tables.str("");
}

extern "C" void cudasim_stop_recording() { recording = false; }

extern "C" int64_t cudasim_acts(const int64_t** numbers) {
    *numbers = acts.data();
    return static_cast<int64_t>(acts.size());
}

extern "C" int64_t cudasim_frames(const int64_t** numbers) {
    *numbers = frames.data();
    return static_cast<int64_t>(frames.size());
}

// A line for every launch and for every array, in their order.
extern "C" const char* cudasim_tables() { return (tables_text = tables.str()).c_str(); }

#endif
