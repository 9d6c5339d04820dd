// The compiler calls these under -fsanitize=thread, before every access to memory, except to local variables.
#include <atomic>

#include "state.h"

using namespace cudasim;

#define HERE __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void* from) { enter_function(from); }
void __tsan_func_exit() { leave_function(); }
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

void __tsan_read_range(void* a, size_t bytes) { access(a, bytes, Access::Read, HERE); }
void __tsan_write_range(void* a, size_t bytes) { access(a, bytes, Access::Write, HERE); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) { return copy(to, from, bytes); }
void* __tsan_memmove(void* to, const void* from, size_t bytes) { return copy(to, from, bytes); }
void* __tsan_memset(void* to, int value, size_t bytes) { return fill(to, value, bytes); }

#define READ_AND_WRITE(n, prefix, is_volatile)                                                \
    void __tsan_##prefix##read##n(void* a) { access(a, n, Access::Read, HERE, is_volatile); } \
    void __tsan_##prefix##write##n(void* a) { access(a, n, Access::Write, HERE, is_volatile); }
#define HOOKS(n)                         \
    READ_AND_WRITE(n, , false)           \
    READ_AND_WRITE(n, unaligned_, false) \
    READ_AND_WRITE(n, volatile_, true)   \
    READ_AND_WRITE(n, unaligned_volatile_, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS
#undef READ_AND_WRITE

// The compiler calls these under -fsanitize=alignment, before an access to a type at a misaligned address.
struct Misaligned {
    struct {
        const char* file;
        uint32_t line, column;
    } where;
    const void* type;
    unsigned char log_alignment;
    unsigned char kind;  // 0: a load, 1: a store, 2: a reference, others: access to a member
};
void __ubsan_handle_type_mismatch_v1(const Misaligned* found, uintptr_t address) {
    if (found->kind <= 2) expect_misaligned(address, size_t{1} << found->log_alignment);
}

void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int) {}

// Called by the host's code: std::atomic, and the guards of local statics.
#define FETCH(bits, T, name)                                        \
    T __tsan_atomic##bits##_fetch_##name(volatile T* a, T v, int) { \
        return __atomic_fetch_##name(a, v, __ATOMIC_SEQ_CST);       \
    }
#define HOOKS(bits, T)                                                                                                \
    T __tsan_atomic##bits##_load(const volatile T* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); }           \
    void __tsan_atomic##bits##_store(volatile T* a, T v, int) { __atomic_store_n(a, v, __ATOMIC_SEQ_CST); }           \
    T __tsan_atomic##bits##_exchange(volatile T* a, T v, int) { return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST); } \
    FETCH(bits, T, add)                                                                                               \
    FETCH(bits, T, sub)                                                                                               \
    FETCH(bits, T, and)                                                                                               \
    FETCH(bits, T, or)                                                                                                \
    FETCH(bits, T, xor) int __tsan_atomic##bits##_compare_exchange_strong(volatile T* a, T* c, T v, int, int) {       \
        return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                       \
    }                                                                                                                 \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T* a, T* c, T v, int, int) {                             \
        return __atomic_compare_exchange_n(a, c, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                        \
    }                                                                                                                 \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T* a, T c, T v, int, int) {                                 \
        __atomic_compare_exchange_n(a, &c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                             \
        return c;                                                                                                     \
    }
HOOKS(8, uint8_t) HOOKS(16, uint16_t) HOOKS(32, uint32_t) HOOKS(64, uint64_t)
}
