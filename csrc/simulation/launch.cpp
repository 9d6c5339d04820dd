// Launches: the blocks of a grid, the threads of a block as fibers, and their synchronization.
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>

#include "fiber.h"
#include "host.h"
#include "state.h"

namespace cudasim {

BuiltIn built_in;
__thread bool running = false;
Here here;
unsigned launches = 0;  // and grid barriers

namespace {

constexpr size_t kPage = 16 * 1024;
constexpr size_t kMostThreads = 1024, kMostShared = 227 * 1024;
size_t allowed_shared = 48 * 1024;  // dynamic
constexpr size_t kMostGuarded = 16 * 1024;
constexpr int kExchanged = 16;       // most bytes that a lane exchanges
constexpr unsigned kResident = 132;  // multiprocessors, of 2048 threads each

enum class State { Ready, AtBarrier, AtWarp, AtActive, AtGrid, Done };

const char* in_words(State state) {
    switch (state) {
        case State::AtBarrier: return "waits at __syncthreads";
        case State::AtWarp: return "waits for its warp";
        case State::AtActive: return "waits at __activemask";
        case State::AtGrid: return "waits for the grid";
        case State::Done: return "has returned";
        default: return "runs";
    }
}

struct Thread {
    Fiber fiber;
    State state;
    bool vote;
    Vote how;
    int barrier;       // the line of the barrier that it waits at
    const char* kind;  // the warp operation that it waits for
    unsigned mask;
    uint3 index;
    const void* from;
    std::vector<const void*> calls;
};

struct Warp {
    alignas(kExchanged) std::array<std::array<char, kExchanged>, kWarp> pending, given;
    unsigned givers;  // lanes that took part in the last exchange
    uint32_t tick;
    std::array<std::array<uint32_t, kWarp>, kWarp> met;  // the tick when two lanes last waited for each other
};

struct Block {
    unsigned index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> turns;
    Arena arena;
    uint32_t epoch;
    int vote;       // the result of the last barrier's vote
    int fruitless;  // rounds in which threads only spun
    char* stacks = nullptr;
    size_t stacks_bytes = 0;

    ~Block() { munmap(stacks, stacks_bytes); }
};

Fiber scheduler;
Block* block;
const char* kernel_name = "";
void (*kernel_thread)(void*);
void* kernel_arguments;
size_t arguments_bytes;
bool cooperative, faulty;
std::vector<std::unique_ptr<Block>> pool;
thread_local std::vector<const void*> host_calls;
unsigned current;  // the running thread, by its number in the block

Thread& self() { return block->threads[current]; }

void wait(State state, const void* from) {
    settle();
    Thread& me = self();
    me.state = state;
    me.from = from;
    running = false;
    me.fiber.switch_to(scheduler);
    running = true;
}

void thread_main() {
    running = true;
    kernel_thread(kernel_arguments);
    wait(State::Done, nullptr);
}

// ---- the order of threads and blocks ----

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

    void arrange(std::vector<unsigned>& turns) {
        std::iota(turns.begin(), turns.end(), 0u);
        if (kind == Kind::Descending) std::reverse(turns.begin(), turns.end());
        if (kind == Kind::Random) std::shuffle(turns.begin(), turns.end(), random);
    }
};

Order& order() {
    static Order order([] {
        const char* const text = std::getenv("SBNREF_CUDASIM_ORDER");
        return std::string(text ? text : "ascending");
    }());
    return order;
}

// ---- a block ----

void start(Block& b, unsigned index, const Config& config) {
    const size_t size = size_t{config.block.x} * config.block.y * config.block.z;
    b.index = index;
    b.epoch = 0;
    b.fruitless = 0;
    b.arena.arrays.clear();
    b.arena.used = b.arena.bytes = b.arena.fixed = 0;
    if (b.arena.memory == nullptr) b.arena.memory.reset(new char[2 * kMostShared]);
    if (b.stacks_bytes < size * kStackBytes) {
        if (b.stacks != nullptr) munmap(b.stacks, b.stacks_bytes);
        b.stacks_bytes = size * kStackBytes;
        void* const memory =
            mmap(nullptr, b.stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        b.stacks = static_cast<char*>(memory);
        static size_t guarded = 0;  // not all stacks, because the system limits the mappings of a process
        for (size_t t = 0; t < size && guarded < kMostGuarded; ++t, ++guarded)
            mprotect(b.stacks + t * kStackBytes, kPage, PROT_NONE);  // ends the process
    }
    b.threads.resize(size);
    b.turns.resize(size);
    b.warps.resize((size + kWarp - 1) / kWarp);
    for (Warp& w : b.warps) w.tick = 1, w.met = {};
    for (size_t t = 0; t < size; ++t) {
        Thread& thread = b.threads[t];
        // Place the tops of the stacks in different cache sets.
        thread.fiber.start(b.stacks + t * kStackBytes, kStackBytes - t % 64 * 320, thread_main);
        thread.state = State::Ready;
        thread.kind = "";
        thread.mask = 0;
        thread.index = thread_index(static_cast<unsigned>(t));
        thread.calls.clear();
    }
}

unsigned lanes_of(const Block& b, unsigned warp) {
    const unsigned left = static_cast<unsigned>(b.threads.size()) - warp * kWarp;
    return left < kWarp ? left : kWarp;
}

// The place where a thread waits.
Site site_of(const Thread& thread) {
    Site found{thread.from};
    found.insert(found.end(), thread.calls.rbegin(), thread.calls.rend());
    return found;
}

// The lanes of a warp that have not returned.
unsigned alive(const Block& b, unsigned warp) {
    unsigned mask = 0;
    for (unsigned lane = 0; lane < lanes_of(b, warp); ++lane)
        if (b.threads[warp * kWarp + lane].state != State::Done) mask |= 1u << lane;
    return mask;
}

// Records that all lanes of a mask have waited for each other: each comes after everything that the others saw before.
void meet(Warp& warp, unsigned mask) {
    ++warp.tick;
    std::array<uint32_t, kWarp> latest{};
    for (unsigned i = 0; i < kWarp; ++i)
        if (mask >> i & 1)
            for (unsigned j = 0; j < kWarp; ++j) latest[j] = std::max(latest[j], warp.met[i][j]);
    for (unsigned i = 0; i < kWarp; ++i)
        if (mask >> i & 1)
            for (unsigned j = 0; j < kWarp; ++j) warp.met[i][j] = mask >> j & 1 ? warp.tick : latest[j];
}

// Releases the lanes of each warp that wait for each other, once all have arrived.
bool release_warps(Block& b) {
    bool released = false;
    for (unsigned w = 0; w < b.warps.size(); ++w) {
        const unsigned living = alive(b, w);
        unsigned seen = 0;
        for (unsigned lane = 0; lane < lanes_of(b, w); ++lane) {
            const Thread& first = b.threads[w * kWarp + lane];
            if (first.state != State::AtWarp || seen >> lane & 1) continue;
            const unsigned group = first.mask & living;
            bool complete = true;
            for (unsigned other = 0; other < kWarp; ++other) {
                if (!(group >> other & 1)) continue;
                const Thread& t = b.threads[w * kWarp + other];
                complete &= t.state == State::AtWarp && t.mask == first.mask && std::strcmp(t.kind, first.kind) == 0;
            }
            if (!complete) continue;
            seen |= group;
            Warp& warp = b.warps[w];
            std::memset(&warp.given, 0xff, sizeof warp.given);
            warp.givers = group;
            for (unsigned other = 0; other < kWarp; ++other)
                if (group >> other & 1) warp.given[other] = warp.pending[other];
            if (std::strcmp(first.kind, "__syncwarp") == 0) meet(warp, group);
            for (unsigned other = 0; other < kWarp; ++other)
                if (group >> other & 1) b.threads[w * kWarp + other].state = State::Ready;
            released = true;
            break;  // lanes of another group of this warp still have to read their values
        }
    }
    return released;
}

// Releases the lanes that wait at one __activemask. Its result is in each lane's mask.
bool release_active(Block& b) {
    for (unsigned w = 0; w < b.warps.size(); ++w) {
        for (unsigned lane = 0; lane < lanes_of(b, w); ++lane) {
            const Thread& first = b.threads[w * kWarp + lane];
            if (first.state != State::AtActive) continue;
            unsigned group = 0;
            for (unsigned other = lane; other < lanes_of(b, w); ++other) {
                const Thread& t = b.threads[w * kWarp + other];
                if (t.state == State::AtActive && t.from == first.from) group |= 1u << other;
            }
            for (unsigned other = lane; other < kWarp; ++other) {
                if (!(group >> other & 1)) continue;
                b.threads[w * kWarp + other].state = State::Ready;
                b.threads[w * kWarp + other].mask = group;
            }
            return true;
        }
    }
    return false;
}

// Checks that the lanes of a warp are at the same barrier: the hardware runs it for all at once.
void check_barrier(const Block& b) {
    for (size_t first = 0; first < b.threads.size(); ++first) {
        const Thread& one = b.threads[first];
        if (one.state == State::Done) continue;
        for (size_t t = first + 1; t < b.threads.size() && t / kWarp == first / kWarp; ++t) {
            const Thread& other = b.threads[t];
            if (other.state == State::Done || other.barrier == one.barrier) continue;
            note_fault(
                in_kernel_words() + "thread " + thread_in_words(first) + " waits at __syncthreads, thread " +
                    thread_in_words(t) + " of the same warp waits at another __syncthreads",
                site_of(one), site_of(other));
            throw Faulty();
        }
        first |= kWarp - 1;
    }
}

bool release_barrier(Block& b) {
    int yes = 0, all = 0;
    for (const Thread& t : b.threads) {
        if (t.state == State::Done) continue;
        if (t.state != State::AtBarrier) return false;
        yes += t.vote;
        ++all;
    }
    if (all == 0) return false;
    check_barrier(b);
    for (Thread& t : b.threads) {
        if (t.state == State::Done) continue;
        b.vote = t.how == Vote::Count ? yes : t.how == Vote::Or ? yes > 0 : yes == all;
        t.state = State::Ready;
    }
    ++b.epoch;
    watch_barrier(b.index);
    return true;
}

[[noreturn]] void fail_stuck(const Block& b) {
    const auto waits = [](const Thread& t) { return t.state != State::Done; };
    const auto waiting = std::find_if(b.threads.begin(), b.threads.end(), waits);
    // Find a thread that waits elsewhere, or for others, to report with the first one.
    const auto elsewhere = [&](const Thread& t) {
        return t.state != State::Done &&
               (t.state != waiting->state || t.mask != waiting->mask || std::strcmp(t.kind, waiting->kind) != 0);
    };
    auto other = std::find_if(b.threads.begin(), b.threads.end(), elsewhere);
    if (waiting->state == State::AtWarp) {  // prefer a thread that it waits for
        const size_t warp = (waiting - b.threads.begin()) / kWarp;
        for (unsigned lane = 0; lane < lanes_of(b, warp); ++lane) {
            const auto t = b.threads.begin() + warp * kWarp + lane;
            if (waiting->mask >> lane & 1 && elsewhere(*t)) {
                other = t;
                break;
            }
        }
    }
    const auto describe = [&](auto t) {
        const std::string what = t->state == State::AtWarp
                                     ? std::string("waits at ") + t->kind + " for other lanes of its warp"
                                     : in_words(t->state);
        return "thread " + thread_in_words(t - b.threads.begin()) + " " + what;
    };
    std::string what = describe(waiting);
    Site elsewhere_at;
    if (other != b.threads.end()) {
        what += ", " + describe(other) + ": a deadlock";
        elsewhere_at = site_of(*other);
    } else {
        what += " forever";
    }
    note_fault(in_kernel_words() + what, site_of(*waiting), elsewhere_at);
    throw Faulty();
}

enum class Outcome { Finished, AtGrid, Spins };

// Runs a block until all its threads have returned, or wait for other blocks.
Outcome run(Block& b) {
    block = &b;
    built_in.block = block_index(b.index);
    for (;;) {
        order().arrange(b.turns);
        bool spun = false;
        for (const unsigned turn : b.turns) {
            Thread& thread = b.threads[turn];
            if (thread.state != State::Ready) continue;
            current = turn;
            built_in.thread = thread.index;
            built_in.lane = turn % kWarp;
            const Warp& warp = b.warps[turn / kWarp];
            static_cast<Position&>(here) = {launches, b.index, b.epoch, warp.tick, static_cast<uint16_t>(turn)};
            here.stack = reinterpret_cast<uintptr_t>(b.stacks) + turn * kStackBytes;
            here.met = warp.met[turn % kWarp].data();
            here.accesses = 0;
            scheduler.switch_to(thread.fiber);
            if (faulty) throw Faulty();
            spun |= thread.state == State::Ready;
        }
        if (release_warps(b)) continue;
        if (spun) {
            if (++b.fruitless % 8 == 0) return Outcome::Spins;
            continue;
        }
        if (release_active(b) || release_barrier(b)) continue;
        const auto at_grid = [](const Thread& t) { return t.state == State::Done || t.state == State::AtGrid; };
        if (!std::all_of(b.threads.begin(), b.threads.end(), at_grid)) fail_stuck(b);
        const auto done = [](const Thread& t) { return t.state == State::Done; };
        return std::all_of(b.threads.begin(), b.threads.end(), done) ? Outcome::Finished : Outcome::AtGrid;
    }
}

// Runs the blocks in turn. Blocks that wait for others stay alive while the next ones run.
void run_grid(const Config& config, unsigned blocks) {
    std::vector<unsigned> turns(blocks);
    order().arrange(turns);
    std::vector<std::unique_ptr<Block>> alive;
    const auto retire = [&](std::unique_ptr<Block>& b) {
        count_block(b->index, b->arena.bytes);
        pool.push_back(std::move(b));
    };
    for (const unsigned turn : turns) {
        if (pool.empty()) pool.push_back(std::make_unique<Block>());
        std::unique_ptr<Block> b = std::move(pool.back());
        pool.pop_back();
        start(*b, turn, config);
        if (run(*b) == Outcome::Finished)
            retire(b);
        else
            alive.push_back(std::move(b));
    }
    while (!alive.empty()) {
        bool all_at_grid = true;
        for (std::unique_ptr<Block>& b : alive) {
            const Outcome outcome = run(*b);
            if (outcome == Outcome::Finished) retire(b);
            all_at_grid &= outcome != Outcome::Spins;
        }
        alive.erase(std::remove(alive.begin(), alive.end(), nullptr), alive.end());
        if (!all_at_grid) continue;
        for (auto& b : alive)
            for (Thread& t : b->threads)
                if (t.state == State::AtGrid) t.state = State::Ready;
        ++launches;
        forget_order();
    }
}

std::string why_invalid(const Config& c) {
    const auto in_words = [](dim3 d) {
        return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
    };
    const uint64_t size = uint64_t{c.block.x} * c.block.y * c.block.z;
    if (size == 0 || size > kMostThreads || c.block.x > 1024 || c.block.y > 1024 || c.block.z > 64)
        return "expected 1 to 1024 threads in a block, at most (1024, 1024, 64), got " + in_words(c.block);
    const uint64_t blocks = uint64_t{c.grid.x} * c.grid.y * c.grid.z;
    if (blocks == 0 || c.grid.x > 0x7fffffffu || c.grid.y > 0xffffu || c.grid.z > 0xffffu)
        return "expected a grid of at least one block, at most (2147483647, 65535, 65535), got " + in_words(c.grid);
    if (blocks > 0xffffffffu) return "expected a grid that can be simulated, got " + in_words(c.grid);
    if (c.shared > kMostShared)
        return "expected at most " + std::to_string(kMostShared) + " bytes of shared memory, got " +
               std::to_string(c.shared);
    if (c.shared > allowed_shared)
        return "expected at most " + std::to_string(allowed_shared) + " bytes of dynamic shared memory, got " +
               std::to_string(c.shared) + "; set cudaFuncAttributeMaxDynamicSharedMemorySize";
    if (c.cooperative && blocks > kResident * (2048 / size))
        return "expected at most " + std::to_string(kResident * (2048 / size)) +
               " blocks, because a cooperative launch runs all at once, got " + std::to_string(blocks);
    return "";
}

}  // namespace

// ---- functions for the other parts ----

Arena& arena() { return block->arena; }
size_t dynamic_bytes;
void allow_dynamic_shared(size_t bytes) { allowed_shared = std::max(allowed_shared, bytes); }

uint3 thread_index(unsigned thread) {
    const unsigned x = built_in.block_size.x, y = built_in.block_size.y;
    return {thread % x, thread / x % y, thread / x / y};
}

uint3 block_index(unsigned block) {
    const unsigned x = built_in.grid_size.x, y = built_in.grid_size.y;
    return {block % x, block / x % y, block / x / y};
}

namespace {
std::string index_in_words(uint3 at, dim3 size) {
    if (size.y == 1 && size.z == 1) return std::to_string(at.x);
    const std::string two = std::to_string(at.x) + ", " + std::to_string(at.y);
    return "(" + (size.z == 1 ? two : two + ", " + std::to_string(at.z)) + ")";
}
}  // namespace

std::string thread_in_words(size_t thread) {
    return index_in_words(thread_index(static_cast<unsigned>(thread)), built_in.block_size);
}

std::string block_in_words(unsigned block) { return index_in_words(block_index(block), built_in.grid_size); }

std::string in_kernel_words() {
    return "kernel " + std::string(kernel_name) + ", block " + block_in_words(block->index) + ", ";
}

bool in_kernel() { return running; }

bool is_any_stack(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(block->stacks) < block->stacks_bytes;
}

namespace {

// Reports a thread that has run into the page below its stack, or divides by zero. Other causes of the signal are
// handled after the return.
void handle_signal(int number, siginfo_t* info, void* context) {
    signal(number, SIG_DFL);
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    if (!running || (number != SIGFPE && !is_any_stack(address))) return;
    running = false;
    Site at(self().calls.rbegin(), self().calls.rend());
#if defined(__linux__)
    const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    const auto instruction = registers.gregs[REG_RIP];
#else
    const auto instruction = registers.pc;
#endif
    at.insert(at.begin(), reinterpret_cast<const void*>(instruction + 1));  // like a return address
#endif
    const std::string most = std::to_string((kStackBytes - kPage) / 1024);
    note_fault(
        in_kernel_words() + "thread " + thread_in_words(current) + ": " +
            (number == SIGFPE
                 ? "divides an integer by zero"
                 : "needs more than the " + most + " KiB that the simulation has for a thread's local variables"),
        at, {});
    end_launch();
}

bool catch_signals() {
    static char memory[64 * 1024];
    stack_t own{};
    own.ss_sp = memory;
    own.ss_size = sizeof memory;
    struct sigaction action{};
    action.sa_sigaction = handle_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(number, &action, nullptr);
    return sigaltstack(&own, nullptr) == 0;
}

}  // namespace

bool is_argument(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(kernel_arguments) < arguments_bytes;
}

Turn take_turn() {
    static auto& mutex = *new std::recursive_mutex;
    return Turn(mutex);
}

void give_way() {
    running = false;
    self().fiber.switch_to(scheduler);  // still ready to run
    running = true;
}

void enter_function(const void* from) { (running ? self().calls : host_calls).push_back(from); }

void leave_function() {
    auto& calls = running ? self().calls : host_calls;
    if (!calls.empty()) calls.pop_back();
}

const void* caller_of_function() {
    const auto& calls = running ? self().calls : host_calls;
    return calls.empty() ? nullptr : calls.back();
}

Site site(const void* from) {
    const auto& calls = running ? self().calls : host_calls;
    Site found{from};
    found.insert(found.end(), calls.rbegin(), calls.rend());
    return found;
}

void fault(const std::string& what, const void* from, const Site& other) { fault(what, site(from), other); }

void fault(const std::string& what, const Site& at, const Site& other) {
    running = false;
    note_fault(in_kernel_words() + "thread " + thread_in_words(current) + ": " + what, at, other);
    faulty = true;
    self().fiber.switch_to(scheduler);  // for good
    std::abort();
}

void fail(const char* what) { fault(what, __builtin_return_address(0)); }

// ---- functions for kernels ----

namespace {

// Whether a kernel runs. A call from the host, of a function for kernels only, is a fault.
bool need_kernel(const char* what, const void* from) {
    if (running) return true;
    note_fault(std::string(what) + " outside of a kernel", site(from), {});
    end_launch();
    return false;
}

}  // namespace

void launch(const char* kernel, const Config& config, int line, void (*thread)(void*), void* arguments, size_t bytes) {
    const void* const from = __builtin_return_address(0);
    if (running) fail("launches a kernel from a kernel, which the simulation does not support");
    if (has_failed()) return;
    const Turn turn = take_turn();
    if (const std::string why = why_invalid(config); !why.empty()) {
        note_failed_call("kernel " + std::string(kernel) + ": " + why, site(from));
        set_invalid_configuration();
        return;
    }
    kernel_name = kernel;
    kernel_thread = thread;
    kernel_arguments = arguments;
    arguments_bytes = bytes;
    dynamic_bytes = config.shared;
    cooperative = config.cooperative;
    faulty = false;
    [[maybe_unused]] static const bool caught = std::getenv("SBNREF_LAB_REPORT") != nullptr && catch_signals();
    built_in.block_size = config.block;
    built_in.grid_size = config.grid;
    ++launches;
    forget_order();
    count_launch(kernel, config, line);
    record_launch(kernel, config, line);
    try {
        run_grid(config, config.grid.x * config.grid.y * config.grid.z);
    } catch (const Faulty&) {
    }
    end_launch();
    static const char* const most = std::getenv("SBNREF_LAB_LAUNCHES");
    if (most != nullptr && counted_launches().size() >= std::stoul(most)) std::exit(0);
}

int wait_for_block(Vote how, bool vote, int line) {
    const void* const from = __builtin_return_address(0);
    if (!need_kernel("__syncthreads", from)) return 0;
    if (recording) record(Act::Barrier, nullptr, 0, 0, from);
    Thread& me = self();
    me.how = how;
    me.vote = vote;
    me.barrier = line;
    me.kind = "__syncthreads";
    me.mask = 0;
    wait(State::AtBarrier, from);
    return block->vote;
}

void wait_for_grid() {
    const void* const from = __builtin_return_address(0);
    if (!cooperative)
        fault("waits for the grid in a launch that is not cooperative; use cudaLaunchCooperativeKernel", from);
    if (recording) record(Act::Barrier, nullptr, 0, 0, from);
    wait(State::AtGrid, from);
}

void exchange(const char* kind, unsigned mask, const void* value, size_t bytes, unsigned source) {
    const void* const from = __builtin_return_address(0);
    if (!need_kernel(kind, from)) return;
    const unsigned lane = built_in.lane, warp = current / kWarp;
    if (!(mask >> lane & 1)) fault(std::string(kind) + " with a mask that leaves out its own lane", from);
    if (bytes > kExchanged)
        fault(
            std::string(kind) + " of a value of " + std::to_string(bytes) + " bytes; expected at most " +
                std::to_string(kExchanged),
            from);
    if (recording && bytes > 0) record(Act::Shuffle, nullptr, source, bytes, from);
    std::memcpy(block->warps[warp].pending[lane].data(), value, bytes);
    Thread& me = self();
    me.kind = kind;
    me.mask = mask;
    wait(State::AtWarp, from);
}

bool receive(unsigned lane, void* value, size_t bytes) {
    if (!running) return false;
    const Warp& warp = block->warps[current / kWarp];
    std::memcpy(value, warp.given[lane].data(), bytes);
    return warp.givers >> lane & 1;
}

void wait_for_warp(unsigned mask) { exchange("__syncwarp", mask, nullptr, 0); }

unsigned active_lanes() {
    if (!need_kernel("__activemask", __builtin_return_address(0))) return 0;
    wait(State::AtActive, __builtin_return_address(0));
    return self().mask;
}

void fence(bool) { watch_fence(); }

}  // namespace cudasim

extern "C" const char* cudasim_set_order(const char* text) {
    static std::string message;
    try {
        cudasim::order() = cudasim::Order(text);
        return nullptr;
    } catch (const std::exception& error) {
        return (message = error.what()).c_str();
    }
}
