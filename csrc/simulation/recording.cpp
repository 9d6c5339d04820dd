// Records the acts of the threads of small launches, in order, for the player.
#include <map>

#include "host.h"
#include "state.h"

namespace cudasim {

bool recording = false;

namespace {

constexpr size_t kMost = 400'000;  // acts
constexpr int kColumns = 8;

std::vector<int64_t> acts;        // launch, block, thread, act, site, array, offset, bytes
std::vector<std::string> arrays;  // each as JSON
std::vector<std::string> launches;
std::map<std::string, int64_t> array_numbers;
std::string text;

int64_t number_of_array(const Array& array) {
    const std::string json = "{\"name\": " + quoted(array.name) +
                             ", \"address\": " + (array.space == Space::Shared ? "0" : std::to_string(array.begin)) +
                             ", \"bytes\": " + std::to_string(array.size()) + "}";
    const auto [at, is_new] = array_numbers.try_emplace(json, static_cast<int64_t>(arrays.size()));
    if (is_new) arrays.push_back(json);
    return at->second;
}

}  // namespace

void record_launch(const char* kernel, const Config& config, int line) {
    if (!recording) return;
    launches.push_back(
        "{\"kernel\": " + quoted(kernel) + ", \"grid\": " + as_json(config.grid) +
        ", \"block\": " + as_json(config.block) + ", \"line\": " + std::to_string(line) + "}");
}

void record(Act act, const Array* array, int64_t offset, size_t bytes, const void* from) {
    if (!recording) return;
    if (acts.size() >= kColumns * kMost) fault("executes more instructions than a recording holds", from);
    acts.insert(
        acts.end(),
        {static_cast<int64_t>(launches.size()) - 1, here.block, here.thread, static_cast<int64_t>(act), number_of(from),
         array == nullptr ? -1 : number_of_array(*array), offset, static_cast<int64_t>(bytes)});
}

}  // namespace cudasim

extern "C" void cudasim_record(int on) {
    using namespace cudasim;
    recording = on != 0;
    if (!on) return;
    acts.clear();
    arrays.clear();
    launches.clear();
    array_numbers.clear();
}

extern "C" int64_t cudasim_acts(const int64_t** numbers) {
    *numbers = cudasim::acts.data();
    return static_cast<int64_t>(cudasim::acts.size());
}

// The launches, the arrays and the sites that the acts refer to by number.
extern "C" const char* cudasim_recorded() {
    using namespace cudasim;
    std::string sites;
    for (uint32_t i = 0; i < number_of_sites(); ++i) sites += (i ? ", " : "") + as_json(site_of(i));
    text =
        "{\"launches\": [" + joined(launches) + "], \"arrays\": [" + joined(arrays) + "], \"sites\": [" + sites + "]}";
    return text.c_str();
}
