// The arrays that kernels may access, and the checks of every access that the compiler reports.
#include <dlfcn.h>
#include <sys/mman.h>
#ifdef __linux__
#include <link.h>
#endif

#include <algorithm>
#include <tuple>
#include <unordered_map>

#include "host.h"
#include "state.h"

namespace cudasim {
namespace {

constexpr size_t kChunk = 4096;         // elements
constexpr size_t kAlignment = 256;      // of an allocation
constexpr size_t kGap = 256;            // between allocations
constexpr uintptr_t kPage = 16 * 1024;  // a multiple of the system's page
constexpr size_t kSharedGap = 128, kSharedBytes = 227 * 1024, kStaticBytes = 48 * 1024;

// Allocations follow each other in one region and are never reused, so that every address identifies its array.
struct Region {
    uintptr_t begin = 0, used = 0, end = 0;

    Region() {
        size_t bytes = size_t{1} << 38;
        void* memory = MAP_FAILED;
        for (bool limited = false; memory == MAP_FAILED; limited = true) {
            if (limited) bytes /= 4;  // leave most of a limited memory to others
            memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        }
        begin = used = reinterpret_cast<uintptr_t>(memory);
        end = begin + bytes;
    }
    bool holds(uintptr_t address) const { return address - begin < end - begin; }
};

Region& region() {
    static Region region;
    return region;
}

std::vector<std::unique_ptr<Array>>& allocated() {                   // in the order of their addresses
    static auto& arrays = *new std::vector<std::unique_ptr<Array>>;  // outlives the report at the exit
    return arrays;
}

std::vector<std::unique_ptr<Array>>& others() {                      // variables, and registered memory
    static auto& arrays = *new std::vector<std::unique_ptr<Array>>;  // outlives the report at the exit
    return arrays;
}

std::vector<std::tuple<void*, void*, size_t>>& uploads() {  // on the GPU, on the host, bytes
    static std::vector<std::tuple<void*, void*, size_t>> all;
    return all;
}

Array* last = nullptr;  // the array found last
bool any_registered = false;

// The allocation that begins at or before an address.
Array* allocation_before(uintptr_t address) {
    const auto& all = allocated();
    auto after = std::upper_bound(
        all.begin(), all.end(), address, [](uintptr_t a, const auto& array) { return a < array->begin; });
    return after == all.begin() ? nullptr : std::prev(after)->get();
}

Array* find_shared(uintptr_t address) {
    Arena& here = arena();
    if (address - reinterpret_cast<uintptr_t>(here.memory.get()) >= 2 * kSharedBytes) return nullptr;
    for (auto& [id, array] : here.arrays)
        if (array->holds(address)) return array.get();
    return nullptr;
}

const char* verb(Access access) { return access == Access::Read ? "reads" : "writes"; }

std::string elements_in_words(size_t n) { return std::to_string(n) + (n == 1 ? " element" : " elements"); }
std::string bytes_in_words(size_t bytes) { return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes"); }

// The array nearest to an address outside of all arrays, or the array in which an access begins.
const Array* nearest(uintptr_t address) {
    const Array* found = nullptr;
    size_t least = kSharedGap;
    const auto consider = [&](const Array& array, size_t most) {
        const size_t gap = array.holds(address)    ? 0
                           : address < array.begin ? array.begin - address
                                                   : address - array.end;
        if (gap <= std::min(least, most)) found = &array, least = gap;
    };
    for (auto& [id, array] : arena().arrays) consider(*array, kSharedGap);
    for (const auto& array : others()) consider(*array, kSharedGap);
    if (found != nullptr || !region().holds(address)) return found;
    least = SIZE_MAX;
    for (const Array* array : {allocation_before(address), allocation_before(address + kGap + kAlignment)})
        if (array != nullptr) consider(*array, SIZE_MAX);
    return found;
}

// Whether an address is in the program's memory for constants, tables and strings, which the compiler may make.
bool is_constant(uintptr_t address) {
#ifdef __linux__
    const auto holds = [](dl_phdr_info* info, size_t, void* p) {
        const uintptr_t at = *static_cast<uintptr_t*>(p) - info->dlpi_addr;
        return static_cast<int>(
            std::any_of(info->dlpi_phdr, info->dlpi_phdr + info->dlpi_phnum, [at](const auto& part) {
                const bool is_read_only =
                    part.p_type == PT_GNU_RELRO || (part.p_type == PT_LOAD && !(part.p_flags & PF_W));
                return is_read_only && at - part.p_vaddr < part.p_memsz;
            }));
    };
    return dl_iterate_phdr(holds, &address) != 0;
#else
    Dl_info of;
    return dladdr(reinterpret_cast<void*>(address), &of) != 0;
#endif
}

// Reports a kernel's access to an address that it may not access.
[[noreturn]] void fail_outside(uintptr_t address, size_t bytes, Access access, const void* from) {
    const std::string what = std::string(verb(access)) + " " + bytes_in_words(bytes);
    if (address < 4096) fault(what + " at a null pointer", from);
    if (is_any_stack(address)) fault(what + " among the local variables of another thread", from);
    const Array* near = nearest(address);
    if (recording && near != nullptr) {
        const bool shared = near->space == Space::Shared;
        const Act act =
            access == Access::Read ? (shared ? Act::ReadShared : Act::Read) : (shared ? Act::WriteShared : Act::Write);
        record(act, near, static_cast<int64_t>(address - near->begin), bytes, from);
    }
    if (near != nullptr && near->holds(address))  // begins inside
        fault(what + ", the last of them past the end of " + near->name, from);
    if (near != nullptr) {
        const bool before = address < near->begin;
        const size_t gap = before ? near->begin - address : address - near->end;
        fault(
            std::string(verb(access)) + " " + near->in_words(address, bytes) + ", " +
                (gap == 0 ? "just" : bytes_in_words(gap)) +
                (before ? " before the beginning of " : " past the end of ") +
                (near->space == Space::Shared ? "the shared array " : "") + near->name + " (" +
                (near->element > 1 ? elements_in_words(near->size() / near->element) : bytes_in_words(near->size())) +
                ")",
            from);
    }
    if (msync(reinterpret_cast<void*>(address / kPage * kPage), 1, MS_ASYNC) != 0)
        fault(what + " at an invalid address", from);
    Dl_info of;
    const bool is_variable = dladdr(reinterpret_cast<void*>(address), &of) != 0;
    fault(
        what + " of host memory; a kernel can access only memory from cudaMalloc and __device__ variables" +
            (is_variable ? "" : "; the simulation does not support malloc and new in a kernel"),
        from);
}

// The host's code must not reach into the GPU's memory.
void check_host(uintptr_t address, size_t bytes, Access access, const void* from) {
    if (!region().holds(address) && !any_registered) return;
    const Turn turn = take_turn();
    const Array* const array = find(address);
    if (array == nullptr ? !region().holds(address) : array->host && !array->freed) return;
    const Array* const near = array != nullptr ? array : allocation_before(address);
    const std::string name = near == nullptr        ? "an array"
                             : near->holds(address) ? near->in_words(address, bytes)
                                                    : near->name;
    note_fault(
        "the host " + std::string(verb(access)) + " " + name + ", which is in GPU memory; copy it with cudaMemcpy",
        site(from), {});
    end_launch();
}

}  // namespace

// ---- arrays ----

std::string Array::in_words(uintptr_t address, size_t bytes) const {
    const size_t unit = element > 1 ? element : std::max<size_t>(bytes, 1);
    const auto offset = static_cast<int64_t>(address - begin);
    return name + "[" + std::to_string(offset / static_cast<int64_t>(unit)) + "]";
}

// Elements become as small as the smallest access.
void Array::refine(size_t bytes) {
    while (granule > bytes || granule > 4) {
        std::vector<bool> finer(2 * written.size());
        for (size_t i = 0; i < written.size(); ++i) finer[2 * i] = finer[2 * i + 1] = written[i];
        written = std::move(finer);
        const size_t before = chunk_size();
        granule /= 2;
        std::vector<std::unique_ptr<Element[]>> split(2 * chunks.size());
        for (size_t i = 0; i < chunks.size(); ++i) {
            if (chunks[i] == nullptr) continue;
            for (size_t half = 0; half < 2; ++half) {
                auto& part = split[2 * i + half] = std::make_unique<Element[]>(chunk_size());
                for (size_t k = 0; k < chunk_size() && half * kChunk + k < 2 * before; ++k)
                    part[k] = chunks[i][(half * kChunk + k) / 2];
            }
        }
        chunks = std::move(split);
    }
}

// The number of elements in a chunk: small for a small array.
size_t Array::chunk_size() const { return std::min(kChunk, size() / granule + 1); }

Element& Array::at(size_t i) {
    if (i / kChunk >= chunks.size()) chunks.resize(size() / granule / kChunk + 1);
    auto& chunk = chunks[i / kChunk];
    if (chunk == nullptr) chunk = std::make_unique<Element[]>(chunk_size());
    return chunk[i % kChunk];
}

void Array::set_written(uintptr_t address, size_t bytes) {
    if (known) return;
    if (address == begin && bytes == size()) {
        known = true;
        return;
    }
    if (written.empty()) written.resize((size() + granule - 1) / granule);
    if ((address - begin) % granule || bytes % granule) refine(1);
    const auto first = written.begin() + (address - begin) / granule;
    std::fill(first, first + bytes / granule, true);
}

void* allocate(size_t bytes, const std::string& name, size_t element, bool host, Site made) {
    const Turn turn = take_turn();
    Region& r = region();
    if (bytes > r.end - r.used || bytes + 2 * kGap > r.end - r.used) return nullptr;
    auto array = std::make_unique<Array>();
    array->begin = r.used = (r.used + kGap + kAlignment - 1) / kAlignment * kAlignment;
    array->end = r.used += bytes;
    array->name = name;
    array->element = element;
    array->host = host;
    array->made = std::move(made);
    allocated().push_back(std::move(array));
    return reinterpret_cast<void*>(allocated().back()->begin);
}

bool release(void* begin) {
    const Turn turn = take_turn();
    last = nullptr;
    Array* const array = allocation_before(reinterpret_cast<uintptr_t>(begin));
    if (array == nullptr || array->freed || array->begin != reinterpret_cast<uintptr_t>(begin)) return false;
    array->freed = true;
    array->chunks.clear();
    array->written.clear();
    const uintptr_t first = (array->begin + kPage - 1) / kPage * kPage, end = array->end / kPage * kPage;
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
    return true;
}

const std::vector<std::unique_ptr<Array>>& allocations() { return allocated(); }

Array* find(uintptr_t address) {
    if (last != nullptr && last->holds(address)) return last;
    if (region().holds(address)) {
        Array* const array = allocation_before(address);
        return array != nullptr && array->holds(address) ? last = array : nullptr;
    }
    for (const auto& array : others())
        if (array->holds(address)) return last = array.get();
    return nullptr;
}

void register_memory(const char* name, const void* begin, size_t bytes, size_t element, bool written) {
    const Turn turn = take_turn();
    auto array = std::make_unique<Array>();
    array->begin = reinterpret_cast<uintptr_t>(begin);
    array->end = array->begin + bytes;
    array->name = name;
    array->element = element;
    array->known = written;
    array->registered = any_registered = true;
    others().push_back(std::move(array));
}

bool unregister_memory(const void* begin) {
    const Turn turn = take_turn();
    last = nullptr;
    auto& all = others();
    const auto left = std::remove_if(all.begin(), all.end(), [begin](const auto& a) {
        return a->registered && (begin == nullptr || a->begin == reinterpret_cast<uintptr_t>(begin));
    });
    const bool found = left != all.end();
    all.erase(left, all.end());
    any_registered = std::any_of(all.begin(), all.end(), [](const auto& a) { return a->registered; });
    return found;
}

Variable::Variable(const volatile void* address, size_t bytes, size_t element, const char* name, bool constant) {
    auto array = std::make_unique<Array>();
    array->begin = reinterpret_cast<uintptr_t>(address);
    array->end = array->begin + bytes;
    array->name = name;
    array->element = element;
    array->space = constant ? Space::Constant : Space::Global;
    array->known = true;
    others().push_back(std::move(array));
}

// ---- shared memory ----

static const char of_dynamic = 0;  // its address identifies dynamic shared memory

void* shared_array(const char* id, const char* name, size_t bytes, size_t element) {
    if (!running) return nullptr;
    Arena& here = arena();
    for (auto& [known, array] : here.arrays)
        if (known == id) return reinterpret_cast<void*>(array->begin);
    if (here.bytes + bytes > kSharedBytes)
        fault("needs more than the 227 KiB of shared memory that a block has", __builtin_return_address(0));
    if (id != &of_dynamic && (here.fixed += bytes) > kStaticBytes)
        fault("needs more than the 48 KiB that __shared__ arrays of fixed sizes have", __builtin_return_address(0));
    auto array = std::make_unique<Array>();
    here.used = (here.used + kSharedGap + kSharedGap - 1) / kSharedGap * kSharedGap;
    array->begin = reinterpret_cast<uintptr_t>(here.memory.get()) + here.used;
    array->begin = (array->begin + kSharedGap - 1) / kSharedGap * kSharedGap;
    array->end = array->begin + bytes;
    here.used = array->end - reinterpret_cast<uintptr_t>(here.memory.get());
    here.bytes += bytes;
    array->name = name;
    array->element = element;
    array->space = Space::Shared;
    std::memset(reinterpret_cast<void*>(array->begin), 0xff, bytes);  // garbage
    here.arrays.emplace_back(id, std::move(array));
    return reinterpret_cast<void*>(here.arrays.back().second->begin);
}

void* dynamic_shared(const char* name, size_t element) {
    return shared_array(&of_dynamic, name, dynamic_bytes, element);
}

// ---- an access ----

namespace {

// Misaligned addresses of upcoming accesses, and the alignment of the type.
std::unordered_map<uintptr_t, size_t>& misaligned_at = *new std::unordered_map<uintptr_t, size_t>;

void check(uintptr_t address, size_t bytes, Access access, const void* from, bool is_volatile = false) {
    if (!running) return check_host(address, bytes, access, from);
    if (is_own_stack(address) || address - reinterpret_cast<uintptr_t>(&built_in) < sizeof built_in ||
        is_argument(address))
        return;
    pass_time();
    Array* array = find_shared(address);
    if (array == nullptr) array = find(address);
    if (array == nullptr) {
        if (access == Access::Read && address >= 4096 && !region().holds(address) && is_constant(address)) return;
        fail_outside(address, bytes, access, from);
    }
    if (address + bytes > array->end) fail_outside(address, bytes, access, from);
    if (array->freed)
        fault(std::string(verb(access)) + " " + array->in_words(address, bytes) + " after it was freed", from);
    if (array->space == Space::Constant && access != Access::Read)
        fault("writes " + array->in_words(address, bytes) + ", which is constant", from);
    const auto misaligned = misaligned_at.find(address);
    if (misaligned != misaligned_at.end() && bytes >= misaligned->second)
        fault(
            std::string(verb(access)) + " " + bytes_in_words(bytes) + " of " + array->name +
                " at an address that is not a multiple of " + std::to_string(misaligned->second),
            from);
    const bool shared = array->space == Space::Shared;
    const Act act = access == Access::Atomic && !shared ? Act::Atomic
                    : access == Access::Read            ? (shared ? Act::ReadShared : Act::Read)
                                                        : (shared ? Act::WriteShared : Act::Write);
    if (recording) record(act, array, static_cast<int64_t>(address - array->begin), bytes, from);
    if (array->space == Space::Constant) return;
    const uint32_t site = number_of(from);
    watch(*array, address, bytes, access, from, site, is_volatile);
    count(*array, address, bytes, access, site);
}

}  // namespace

void access(const void* address, size_t bytes, Access access, const void* from, bool is_volatile) {
    check(reinterpret_cast<uintptr_t>(address), bytes, access, from, is_volatile);
}

void expect_misaligned(uintptr_t address, size_t alignment) {
    if (running) misaligned_at[address] = alignment;
}

void* copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) {
        check(reinterpret_cast<uintptr_t>(from), bytes, Access::Read, __builtin_return_address(0));
        check(reinterpret_cast<uintptr_t>(to), bytes, Access::Write, __builtin_return_address(0));
    }
    return std::memmove(to, from, bytes);
}

void* fill(void* to, int value, size_t bytes) {
    if (bytes > 0) check(reinterpret_cast<uintptr_t>(to), bytes, Access::Write, __builtin_return_address(0));
    return std::memset(to, value, bytes);
}

}  // namespace cudasim

extern "C" void cudasim_register(const void* begin, int64_t bytes) {
    cudasim::register_memory("an array", begin, bytes, 1, true);
}
extern "C" void cudasim_unregister() { cudasim::unregister_memory(); }

// Copies an array of the host to the GPU's memory, until the next call of cudasim_free_all; returns its address.
extern "C" void* cudasim_upload(const char* name, void* from, int64_t bytes, int64_t element, int written) {
    using namespace cudasim;
    void* const to = allocate(bytes, name, element, false, {});
    if (to == nullptr) return nullptr;
    allocated().back()->known = written != 0;
    strict = true;  // for grading
    std::memcpy(to, from, bytes);
    uploads().emplace_back(to, from, bytes);
    return to;
}

// Copies all uploaded arrays back to the host.
extern "C" void cudasim_download() {
    for (const auto& [from, to, bytes] : cudasim::uploads()) std::memcpy(to, from, bytes);
}

// Frees everything. Later allocations start again at the first address.
extern "C" void cudasim_free_all() {
    using namespace cudasim;
    uploads().clear();
    for (const auto& array : allocated())
        if (!array->freed) release(reinterpret_cast<void*>(array->begin));
    allocated().clear();
    last = nullptr;
    region().used = region().begin;
}

// The site of the last write to an address, as JSON.
extern "C" const char* cudasim_last_write(const void* address) {
    using namespace cudasim;
    static std::string text;
    Array* const array = find(reinterpret_cast<uintptr_t>(address));
    text = array == nullptr ? "[]" : as_json(last_write(*array, reinterpret_cast<uintptr_t>(address)));
    return text.c_str();
}
