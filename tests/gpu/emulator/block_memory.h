// What the threads of a block write to beside the memory of the device: stacks and shared memory.
#pragma once

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "emulator.h"
#include "sanitizer.h"

namespace umbel_emulated {

// Enough for kernels that keep a tile of accumulators in an array, also without optimization.
constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t PAGE_BYTES = 4 << 10;
constexpr unsigned THREADS_MAX = 1024;
// A device gives dynamic shared memory at least this alignment.
constexpr size_t SHARED_ALIGNMENT = 128;
// A byte of which any number of bytes are a NaN, as bfloat16, binary16 and binary32.
constexpr int POISON = 0xff;

// Only here so that this library has thread-local storage, also without static shared memory.
inline thread_local char shared_anchor;

// Stacks of fibers, each above a page that may not be touched.
class Stacks {
  public:
    Stacks() {
        memory = static_cast<char*>(mmap(nullptr, STRIDE * THREADS_MAX, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (unsigned i = 0; i < THREADS_MAX; i++) {
            mprotect(memory + STRIDE * i, PAGE_BYTES, PROT_NONE);
        }
    }
    // The tops lie at different places of their pages: at the same one, all threads of a warp would
    // share a few lines of the first-level cache.
    char* top(unsigned thread) const {
        return memory + STRIDE * (thread + 1) - thread % 32 * (PAGE_BYTES / 32);
    }
    char* bottom(unsigned thread) const { return memory + STRIDE * thread + PAGE_BYTES; }
    bool is_guard(uintptr_t address) const {
        const uintptr_t offset = address - reinterpret_cast<uintptr_t>(memory);
        return offset < STRIDE * THREADS_MAX && offset % STRIDE < PAGE_BYTES;
    }

  private:
    static constexpr size_t STRIDE = STACK_BYTES + 2 * PAGE_BYTES;
    char* memory;
};

// Dynamic shared memory, which ends (up to its alignment) at a page that may not be touched.
class DynamicShared {
  public:
    explicit DynamicShared(size_t bytes) : bytes(bytes) {
        const size_t aligned = (bytes + SHARED_ALIGNMENT - 1) & ~(SHARED_ALIGNMENT - 1);
        const size_t pages = (aligned + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
        mapped = pages + 2 * PAGE_BYTES;
        map = static_cast<char*>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(map, PAGE_BYTES, PROT_NONE);
        mprotect(map + mapped - PAGE_BYTES, PAGE_BYTES, PROT_NONE);
        begin = map + mapped - PAGE_BYTES - aligned;
        std::memset(map + PAGE_BYTES, POISON, pages);
        poison_for_sanitizer(map + PAGE_BYTES, begin - map - PAGE_BYTES);
        poison_for_sanitizer(begin + bytes, aligned - bytes);
    }
    DynamicShared(const DynamicShared&) = delete;
    DynamicShared& operator=(const DynamicShared&) = delete;
    ~DynamicShared() {
        unpoison_for_sanitizer(map, mapped);
        munmap(map, mapped);
    }

    void poison() const { std::memset(begin, POISON, bytes); }
    bool is_intact_outside() const {
        if (IS_SANITIZED) {
            return true;
        }
        const auto intact = [](const char* from, const char* to) {
            return std::all_of(from, to, [](char c) { return c == static_cast<char>(POISON); });
        };
        return intact(map + PAGE_BYTES, begin) &&
               intact(begin + bytes, map + mapped - PAGE_BYTES);
    }
    bool holds(const void* at, size_t count) const {
        const auto* p = static_cast<const char*>(at);
        return p >= begin && p + count <= begin + bytes;
    }
    bool is_near(uintptr_t address) const {
        return address - reinterpret_cast<uintptr_t>(map) < mapped;
    }

    char* begin;
    size_t bytes;

  private:
    char* map;
    size_t mapped;
};

// The thread-local storage of this library, which is the static shared memory of its kernels.
struct StaticShared {
    char* begin = nullptr;
    size_t bytes = 0;

    static StaticShared find() {
        shared_anchor = 0;
        StaticShared found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* into) {
                auto& found = *static_cast<StaticShared*>(into);
                auto* data = static_cast<char*>(info->dlpi_tls_data);
                for (int i = 0; i < info->dlpi_phnum && data != nullptr; i++) {
                    const auto& header = info->dlpi_phdr[i];
                    if (header.p_type == PT_TLS && &shared_anchor >= data &&
                        &shared_anchor < data + header.p_memsz) {
                        found = {data, header.p_memsz};
                        return 1;
                    }
                }
                return 0;
            },
            &found);
        return found;
    }
    bool holds(const void* at, size_t count) const {
        const auto* p = static_cast<const char*>(at);
        return p >= begin && p + count <= begin + bytes;
    }
};

}  // namespace umbel_emulated
