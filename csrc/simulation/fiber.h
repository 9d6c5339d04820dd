// A fiber: a function with its own stack that runs until it switches to another fiber.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the simulation of CUDA switches stacks on x86-64 and on arm64"
#endif

namespace cudasim {

// Saves the registers that a function has to preserve on the stack and the stack pointer in *from, and continues where
// `to` stopped.
extern "C" __attribute__((visibility("hidden"))) void cudasim_switch(void** from, void* to) asm("cudasim_switch");
#if defined(__x86_64__)
asm(R"(
.text
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
)");
constexpr int kSaved = 8, kReturn = 6;  // words below the top of a fresh stack, and which of them is returned to
#else
asm(R"(
.text
.balign 4
cudasim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr int kSaved = 20, kReturn = 11;
#endif

class Fiber {
   public:
    // Makes the fiber run `function`, which must not return, on this stack at the next switch to it.
    void start(char* stack, size_t bytes, void (*function)()) {
        auto** const top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16);
        for (int i = 1; i <= kSaved; ++i) top[-i] = nullptr;  // where stack traces end
        context_ = top - kSaved;
        top[kReturn - kSaved] = reinterpret_cast<void*>(function);
    }

    // Switches from this fiber, the running one, to another.
    void switch_to(Fiber& other) { cudasim_switch(&context_, other.context_); }

   private:
    void* context_ = nullptr;
};

}  // namespace cudasim
