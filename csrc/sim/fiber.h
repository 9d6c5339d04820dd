// A fiber: a function with a stack of its own that runs until it switches to another fiber.
//
// ucontext does this everywhere, at the price of a system call per switch; on x86-64 a few instructions do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cudasim {

#if defined(__x86_64__)
// Leaves the registers that a function has to preserve on the stack and the stack pointer in *from, and takes up where
// `to` left off.
extern "C" __attribute__((visibility("hidden"))) void cudasim_switch(void** from, void* to);
asm(R"(
.pushsection .text
.type cudasim_switch, @function
cudasim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cudasim_switch, .-cudasim_switch
.popsection
)");
#endif

class Fiber {
   public:
    // Makes the fiber run `function` from its beginning when it is next switched to. The function must not return.
    void start(void (*function)()) {
        if (!stack_) stack_.reset(new char[kStackBytes]);
        function_ = function;
#if defined(__x86_64__)
        // As cudasim_switch leaves a stack: six registers and the address to return to. At its entry a function expects
        // the stack pointer 8 bytes past a multiple of 16.
        auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16);
        context_ = top - 8;
        top[-2] = reinterpret_cast<void*>(enter);
#else
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = kStackBytes;
        makecontext(&context_, enter, 0);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(stack_.get(), kStackBytes);  // what an abandoned function left there
        bottom_ = stack_.get();
        size_ = kStackBytes;
        shadow_ = nullptr;
#endif
    }

    // Leaves this fiber, which is the one that runs, for another.
    void switch_to(Fiber& other) {
        previous_ = this;
        running_ = &other;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&shadow_, other.bottom_, other.size_);
#endif
#if defined(__x86_64__)
        cudasim_switch(&context_, other.context_);
#else
        swapcontext(&context_, &other.context_);
#endif
        arrive();
    }

   private:
    static void enter() {
        arrive();
        running_->function_();
    }

    // The first thing after every switch, on the new stack.
    static void arrive() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(running_->shadow_, &previous_->bottom_, &previous_->size_);
#endif
    }

#if defined(__SANITIZE_ADDRESS__)
    static constexpr size_t kStackBytes = 256 * 1024;
    void* shadow_ = nullptr;
    const void* bottom_ = nullptr;
    size_t size_ = 0;
#else
    static constexpr size_t kStackBytes = 64 * 1024;
#endif
    static inline Fiber *running_ = nullptr, *previous_ = nullptr;

    std::unique_ptr<char[]> stack_;  // none for the fiber that the thread of the host is
    void (*function_)() = nullptr;
#if defined(__x86_64__)
    void* context_ = nullptr;
#else
    ucontext_t context_;
#endif
};

}  // namespace cudasim
