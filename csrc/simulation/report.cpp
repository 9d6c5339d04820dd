// The report: the first fault, failed calls, the traffic of each launch, memory that was not freed.
//
// A program writes it to the file in SBNREF_LAB_REPORT when it exits, or at its first fault, which ends it. In a
// library, a fault ends its launch, and Python reads the report.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "host.h"
#include "state.h"

namespace cudasim {
namespace {

constexpr int kFaulty = 99;  // the exit status of a program that was ended by a fault

std::string first, first_json, text;

// A failed call, as JSON without its end: whether the program has read the error.
struct FailedCall {
    std::string json;
    bool handled;
};
std::vector<FailedCall> failed_calls;

std::string leaks_as_json() {
    std::vector<std::string> leaks;
    for (const auto& array : allocations())
        if (!array->freed && !array->made.empty())
            leaks.push_back(
                "{\"name\": " + quoted(array->name) + ", \"bytes\": " + std::to_string(array->size()) +
                ", \"at\": " + as_json(array->made) + "}");
    return joined(leaks);
}

std::string in_json(const Launch& l) {
    const auto number = [](const char* name, int64_t value) {
        return std::string(", \"") + name + "\": " + std::to_string(value);
    };
    return "{\"kernel\": " + quoted(l.kernel) + ", \"grid\": " + as_json(l.grid) + ", \"block\": " + as_json(l.block) +
           number("line", l.line) + number("blocks", l.blocks) + number("shared_bytes", l.shared_bytes) +
           number("bytes_read", l.bytes_read) + number("bytes_written", l.bytes_written) +
           number("accesses", l.accesses) + number("sectors", l.sectors) +
           number("shared_accesses", l.shared_accesses) + number("conflicts", l.conflicts) + "}";
}

const char* report() {
    std::vector<std::string> launches;
    for (const Launch& l : counted_launches()) launches.push_back(in_json(l));
    std::vector<std::string> calls;
    for (const FailedCall& i : failed_calls)
        calls.push_back(i.json + ", \"handled\": " + (i.handled ? "true}" : "false}"));
    text = "{\"fault\": " + (first_json.empty() ? "null" : first_json) + ", \"failed_calls\": [" + joined(calls) +
           "], \"launches\": [" + joined(launches) + "], \"leaks\": [" + leaks_as_json() + "]}";
    return text.c_str();
}

const char* file() { return std::getenv("SBNREF_LAB_REPORT"); }

void write_report() {
    if (file() == nullptr) return;
    if (std::FILE* const out = std::fopen(file(), "w")) {
        std::fputs(report(), out);
        std::fclose(out);
    }
}

const bool written_at_exit = file() != nullptr && std::atexit(write_report) == 0;

}  // namespace

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return result + "\"";
}

std::string joined(const std::vector<std::string>& parts) {
    std::string result;
    for (const std::string& part : parts) result += (result.empty() ? "" : ", ") + part;
    return result;
}

std::string as_json(dim3 d) {
    return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + "]";
}

// As addresses in the file of the program or the library; others, such as that of main()'s caller, are left out.
std::string as_json(const Site& site) {
    std::string result;
    Dl_info own, of;
    dladdr(&text, &own);
    for (const void* address : site) {
        if (dladdr(address, &of) == 0 || of.dli_fbase != own.dli_fbase) continue;
        const auto offset = static_cast<const char*>(address) - static_cast<const char*>(of.dli_fbase);
        result += (result.empty() ? "" : ", ") + std::to_string(offset);
    }
    return "[" + result + "]";
}

void note_fault(const std::string& what, const Site& at, const Site& other) {
    if (has_failed()) return;
    first = what;
    first_json = "{\"what\": " + quoted(what) + ", \"at\": " + as_json(at) + ", \"other\": " + as_json(other) + "}";
}

void note_failed_call(const std::string& what, const Site& at) {
    failed_calls.push_back({"{\"what\": " + quoted(what) + ", \"at\": " + as_json(at), false});
}

void handle_failed_calls() {
    for (FailedCall& i : failed_calls) i.handled = true;
}

void forget_failure() {
    first.clear();
    first_json.clear();
}

bool has_failed() { return !first.empty(); }
const std::string& failure() { return first; }

void end_launch() {
    if (!has_failed() || file() == nullptr) return;
    std::fflush(nullptr);
    write_report();
    _exit(kFaulty);
}

}  // namespace cudasim

extern "C" const char* cudasim_report() { return cudasim::report(); }
extern "C" const char* cudasim_failure() { return cudasim::has_failed() ? cudasim::failure().c_str() : nullptr; }

// Clears the first fault and the counts.
extern "C" void cudasim_reset() {
    using namespace cudasim;
    forget_failure();
    failed_calls.clear();
    counted_launches().clear();
}
