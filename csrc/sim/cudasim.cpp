#include "cudasim.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "fiber.h"
#include "recording.h"
#include "watch.h"

cudasim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace cudasim {
namespace {

constexpr int kWarp = 32;
constexpr int kSectorBytes = 32;
constexpr int kLargestExchange = 16;  // bytes
constexpr int kSeveral = -2;          // readers

// What a thread is doing, once it has given up control.
enum class State { Ready, AtBarrier, AtShuffle, Done };

const char* words(State state) {
    switch (state) {
        case State::AtBarrier: return "waits at __syncthreads";
        case State::AtShuffle: return "waits at a warp shuffle";
        case State::Done: return "has returned";
        default: return "is ready";
    }
}

struct Thread {
    Fiber fiber;
    State state;
    bool vote;
    unsigned exchanges;                             // so far
    std::unordered_map<const void*, int> executed;  // how often each access instruction has run, while counting
};

struct Warp {
    // What each lane gives in one exchange. Two of them, in turn: a lane may be in the next exchange while another has
    // yet to read this one's.
    alignas(kLargestExchange) std::array<std::array<std::array<char, kLargestExchange>, kWarp>, 2> given;
};

// ---- the launch that runs; there is one at a time ----

std::mutex one_launch;
Fiber scheduler;
std::vector<Thread> threads;
std::vector<Warp> warps;
const char* kernel_name = "";
const std::function<void()>* kernel_body;
std::exception_ptr error;
bool any_vote;
unsigned epoch;  // barriers that the block has passed
int64_t shared_bytes_of_launch;
std::vector<std::pair<const char*, std::unique_ptr<SharedBase>>> shared_arrays;

// ---- counting ----

bool counting = false;
std::vector<Traffic> counts;
Observer observer;
// The sectors that a warp touches in one execution of one access instruction.
std::map<std::tuple<int, const void*, int>, std::set<uintptr_t>> warp_accesses;

// ---- the order of turns ----

struct Order {
    enum class Kind { Ascending, Descending, Random } kind = Kind::Ascending;
    std::mt19937 random;

    explicit Order(const std::string& text) {
        if (text == "descending")
            kind = Kind::Descending;
        else if (text.rfind("random:", 0) == 0)
            kind = Kind::Random, random.seed(std::stoul(text.substr(7)));
        else if (text != "ascending")
            throw std::invalid_argument(
                "expected an order 'ascending', 'descending' or 'random:SEED', got '" + text + "'");
    }

    template <typename T>
    void arrange(std::vector<T>& turns) {
        std::iota(turns.begin(), turns.end(), T{0});
        if (kind == Kind::Descending) std::reverse(turns.begin(), turns.end());
        if (kind == Kind::Random) std::shuffle(turns.begin(), turns.end(), random);
    }
};

Order& order() {
    static Order order([] {
        const char* text = std::getenv("SBNREF_CUDASIM_ORDER");
        return std::string(text ? text : "ascending");
    }());
    return order;
}

// Throws where no kernel runs: the host has none of this.
void need_kernel(const char* what) {
    if (kernel_body == nullptr) throw std::runtime_error(std::string(what) + " outside of a kernel");
}

// ---- threads ----

// Gives up control until the scheduler lets this thread go on.
void wait(State state) {
    Thread& self = threads[threadIdx.x];
    self.state = state;
    self.fiber.switch_to(scheduler);
}

void thread_main() {
    record_thread(__builtin_frame_address(0));
    try {
        (*kernel_body)();
    } catch (...) {
        error = std::current_exception();
    }
    wait(State::Done);
}

// Where both a waiting thread and one that will never join it exist, the block is stuck.
[[noreturn]] void fail_stuck(int waiting, int other) {
    note_stuck(waiting);
    throw std::runtime_error(
        "simulated kernel " + std::string(kernel_name) + ", block " + std::to_string(blockIdx.x) + ": thread " +
        std::to_string(waiting) + " " + words(threads[waiting].state) + ", thread " + std::to_string(other) + " " +
        words(threads[other].state) + "; all threads have to get there");
}

// All threads have stopped somewhere. Lets those go on whose companions are all there; returns whether any do.
bool release() {
    bool released = false;
    const int size = static_cast<int>(threads.size());
    for (int first = 0; first < size; first += kWarp) {
        const auto begin = threads.begin() + first, end = begin + kWarp;
        const auto at_shuffle = [](const Thread& t) { return t.state == State::AtShuffle; };
        const auto waiting = std::find_if(begin, end, at_shuffle);
        if (waiting == end) continue;
        const auto other = std::find_if_not(begin, end, at_shuffle);
        if (other != end)
            fail_stuck(static_cast<int>(waiting - threads.begin()), static_cast<int>(other - threads.begin()));
        for (auto t = begin; t != end; ++t) t->state = State::Ready;
        released = true;
    }
    if (released) return true;

    const auto at_barrier = [](const Thread& t) { return t.state == State::AtBarrier; };
    const auto waiting = std::find_if(threads.begin(), threads.end(), at_barrier);
    if (waiting == threads.end()) return false;
    const auto other = std::find_if_not(threads.begin(), threads.end(), at_barrier);
    if (other != threads.end())
        fail_stuck(static_cast<int>(waiting - threads.begin()), static_cast<int>(other - threads.begin()));
    any_vote = std::any_of(threads.begin(), threads.end(), [](const Thread& t) { return t.vote; });
    for (Thread& t : threads) t.state = State::Ready;
    ++epoch;
    return true;
}

void run_block(std::vector<int>& turns) {
    epoch = 0;
    watch_block();
    for (Thread& t : threads) {
        t.fiber.start(thread_main);
        t.state = State::Ready;
        t.exchanges = 0;
        t.executed.clear();
    }
    do {
        order().arrange(turns);
        for (const int turn : turns) {
            if (threads[turn].state != State::Ready) continue;
            threadIdx.x = turn;
            scheduler.switch_to(threads[turn].fiber);
            if (error) std::rethrow_exception(std::exchange(error, nullptr));
        }
    } while (release());
    shared_arrays.clear();
    for (const auto& [access, sectors] : warp_accesses) {
        counts.back().sectors += static_cast<int64_t>(sectors.size());
        if (observer) observer(counts.size() - 1, blockIdx.x, std::get<2>(access), sectors);
    }
    warp_accesses.clear();
}

}  // namespace

void launch(
    const char* kernel, int64_t blocks, int block_size, int64_t shared_bytes, const std::function<void()>& thread) {
    const std::lock_guard<std::mutex> lock(one_launch);
    if (blocks < 1 || blocks > INT32_MAX || block_size < kWarp || block_size > 1024 || block_size % kWarp != 0)
        throw std::runtime_error(
            "simulated kernel " + std::string(kernel) + ": cannot launch " + std::to_string(blocks) + " blocks of " +
            std::to_string(block_size) + " threads");
    kernel_name = kernel;
    kernel_body = &thread;
    const struct Running {
        ~Running() { kernel_body = nullptr; }
    } running;
    shared_bytes_of_launch = shared_bytes;
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = block_size;
    threads.resize(block_size);
    warps.resize(block_size / kWarp);
    shared_arrays.clear();  // of a launch that failed
    warp_accesses.clear();
    if (counting) counts.push_back({kernel});
    record_launch(kernel);
    watch_launch();

    std::vector<unsigned> block_turns(blocks);
    std::vector<int> thread_turns(block_size);
    order().arrange(block_turns);
    for (const unsigned block : block_turns) {
        blockIdx.x = block;
        run_block(thread_turns);
    }
}

void set_order(const std::string& text) {
    const std::lock_guard<std::mutex> lock(one_launch);
    order() = Order(text);
}

unsigned current_epoch() { return epoch; }

void fence() { watch_fence(); }

void fail(const std::string& what) {
    note_refusal();
    throw std::runtime_error(
        "simulated kernel " + std::string(kernel_name) + ", block " + std::to_string(blockIdx.x) + ", thread " +
        std::to_string(threadIdx.x) + ": " + what);
}

void check_access(const void* array, int64_t size, int64_t i, int count, int bytes, Access access) {
    need_kernel(access == Access::Read ? "reads global memory" : "writes global memory");
    constexpr Act kActs[] = {Act::Read, Act::Write, Act::Ticket};
    record(kActs[static_cast<int>(access)], array, "", size * bytes, i * bytes, count * bytes);
    const char* const verb = access == Access::Read ? "reads" : "writes";
    if (i < 0 || i + count > size)
        fail(
            std::string(verb) + " elements [" + std::to_string(i) + ", " + std::to_string(i + count) +
            ") of a global array of " + std::to_string(size));
    const uintptr_t address = reinterpret_cast<uintptr_t>(array) + i * bytes;
    if (address % (static_cast<unsigned>(count) * bytes) != 0)
        fail(
            std::string(verb) + " " + std::to_string(count * bytes) + " bytes at an address that is no multiple of it");
    watch(address, count, bytes, access, epoch);
    if (!counting) return;
    (access == Access::Read ? counts.back().bytes_read : counts.back().bytes_written) += count * bytes;
    // The lanes of a warp access memory together: those that execute the same instruction for the same time.
    const void* const instruction = __builtin_return_address(0);
    const int time = threads[threadIdx.x].executed[instruction]++;
    auto& sectors = warp_accesses[{threadIdx.x / kWarp, instruction, time}];
    for (uintptr_t s = address / kSectorBytes; s <= (address + count * bytes - 1) / kSectorBytes; ++s)
        sectors.insert(s);
}

void start_counting() {
    const std::lock_guard<std::mutex> lock(one_launch);
    counting = true;
    counts.clear();
}

std::vector<Traffic> stop_counting() {
    const std::lock_guard<std::mutex> lock(one_launch);
    counting = false;
    return std::exchange(counts, {});
}

void set_observer(Observer told) {
    const std::lock_guard<std::mutex> lock(one_launch);
    observer = std::move(told);
}

void check_shared(const char* name, std::vector<SharedElement>& elements, int64_t i, int bytes, Access access) {
    record(
        access == Access::Read ? Act::ReadShared : Act::WriteShared, nullptr, name,
        static_cast<int64_t>(elements.size()) * bytes, i * bytes, bytes);
    const int me = static_cast<int>(threadIdx.x);
    const auto element = [&] { return std::string(name) + "[" + std::to_string(i) + "]"; };
    if (i < 0 || i >= static_cast<int64_t>(elements.size()))
        fail("accesses shared " + element() + ", which has " + std::to_string(elements.size()) + " elements");
    SharedElement& e = elements[i];
    if (access == Access::Read && !e.written) fail("reads shared " + element() + " before it is written");
    if (e.written && e.write_epoch == epoch && e.writer != me)
        fail(
            std::string(access == Access::Read ? "reads" : "writes") + " shared " + element() + ", which thread " +
            std::to_string(e.writer) + " wrote, without a barrier in between");
    const bool read_before = e.reader != -1 && e.read_epoch == epoch;
    if (access == Access::Read) {
        e.reader = read_before && e.reader != me ? kSeveral : me;
        e.read_epoch = epoch;
        return;
    }
    if (read_before && e.reader != me)
        fail("writes shared " + element() + ", which another thread read, without a barrier in between");
    e.written = true;
    e.writer = me;
    e.write_epoch = epoch;
}

std::unique_ptr<SharedBase>& shared_slot(const char* name) {
    need_kernel("asks for shared memory");
    for (auto& [known, array] : shared_arrays)
        if (known == name) return array;
    return shared_arrays.emplace_back(name, nullptr).second;
}

int64_t dynamic_shared_bytes() { return shared_bytes_of_launch; }

bool wait_for_block(bool vote) {
    need_kernel("waits at a barrier");
    record(Act::Barrier);
    watch_wait();
    threads[threadIdx.x].vote = vote;
    wait(State::AtBarrier);
    return any_vote;
}

const void* exchange(const void* value, size_t bytes, unsigned lane) {
    need_kernel("takes part in a shuffle");
    static_assert(kLargestExchange >= 2 * sizeof(double));
    record(Act::Shuffle, nullptr, "", 0, lane, static_cast<int>(bytes));
    watch_wait();
    if (bytes > kLargestExchange) fail("shuffles a value of " + std::to_string(bytes) + " bytes");
    auto& given = warps[threadIdx.x / kWarp].given[threads[threadIdx.x].exchanges++ % 2];
    std::memcpy(given[threadIdx.x % kWarp].data(), value, bytes);
    wait(State::AtShuffle);
    return given[lane].data();
}

}  // namespace cudasim
