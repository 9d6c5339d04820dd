// Included after a file of kernels: EXPORT(name) lets Python call its function of that name. A door returns what went
// wrong, or null.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace {

template <typename F>
const char* said(const F& run) {
    static std::string message;
    try {
        run();
        return nullptr;
    } catch (const std::exception& error) {
        return (message = error.what()).c_str();
    }
}

}  // namespace

// The function is in the laboratory's namespace, or in none.
#define EXPORT(name)                                                                         \
    extern "C" const char* laboratory_##name(const sbnref::laboratory::Problem* problem) { \
        using namespace sbnref::laboratory;                                                \
        return said([&] { name(*problem); });                                              \
    }

#ifdef SBNREF_CUDASIM

namespace {
std::vector<int64_t> trace;   // (accesses of a warp, sectors): launch, block, time, access, sector
std::vector<int64_t> counts;  // (launches): bytes read, bytes written
}  // namespace

extern "C" void laboratory_start_counting() {
    trace.clear();
    cudasim::set_observer([access = int64_t{0}](size_t launch, unsigned block, int time, const auto& sectors) mutable {
        for (const uintptr_t sector : sectors)
            trace.insert(trace.end(), {int64_t(launch), block, time, access, int64_t(sector)});
        ++access;
    });
    cudasim::start_counting();
}

extern "C" void laboratory_stop_counting() {
    counts.clear();
    for (const cudasim::Traffic& t : cudasim::stop_counting())
        counts.insert(counts.end(), {t.bytes_read, t.bytes_written});
    cudasim::set_observer(nullptr);
}

extern "C" int64_t laboratory_trace(const int64_t** numbers) {
    *numbers = trace.data();
    return static_cast<int64_t>(trace.size());
}

extern "C" int64_t laboratory_counts(const int64_t** numbers) {
    *numbers = counts.data();
    return static_cast<int64_t>(counts.size());
}

extern "C" const char* laboratory_set_order(const char* order) {
    return said([&] { cudasim::set_order(order); });
}

#endif
