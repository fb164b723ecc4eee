// The emulated devices: how many there are and how they fail, their memory, and their state.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "abi.h"
#include "block.h"

namespace umbel_emulated {

// What the environment asks for, read when the library is first used.
struct Settings {
    uint64_t memory_bytes;
    unsigned devices;
    unsigned driver_version;
    unsigned capability;
    unsigned multiprocessors;
    uint64_t seed;
    std::optional<uint64_t> lose_after;
    CUresult lost_with;
    std::optional<uint64_t> refuse_after;
    uint64_t refuse_every;
};

const Settings& settings();

// A device's shared memory: what one of capability 9.0 has, or else one of 8.6, the least of all that
// are served.
constexpr int SHARED_BYTES_DEFAULT = 48 << 10;
inline int shared_bytes_optin() { return settings().capability >= 90 ? 227 << 10 : 99 << 10; }
inline int shared_bytes_multiprocessor() { return shared_bytes_optin() + (1 << 10); }
constexpr int SHARED_BYTES_RESERVED = 1 << 10;

// Allocations, each between pages that may not be touched and bytes that may not change.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { clear(); }
    void clear();
    // Zero where the address space has no room.
    CUdeviceptr allocate(size_t bytes);
    bool release(CUdeviceptr pointer);
    bool holds(CUdeviceptr pointer, size_t bytes) const;
    uint64_t used() const { return used_bytes; }
    // Where `address` lies, seen from the nearest allocation.
    std::string describe(uintptr_t address) const;
    // An allocation beside which something was written, in words, or nothing.
    std::string damage() const;

  private:
    struct Allocation {
        char* map;
        size_t mapped;
        char* data;
        size_t bytes;
    };
    static void give_back(const Allocation& allocation);
    std::map<uintptr_t, Allocation> allocations;
    uint64_t used_bytes = 0;
};

// A device and its primary context, of which the address is the context's handle.
struct Device {
    int ordinal = 0;
    Memory memory;
    unsigned retained = 0;
    // The first error of a kernel. Every call after it gives the same, until the context is gone.
    CUresult error = CUDA_SUCCESS;
};

// Held during every call, since there is one emulated machine for all threads of the process.
std::recursive_mutex& driver_lock();

Device* device_at(int ordinal);
Device* current_device();
void set_current_device(Device* device);

// What the next call on the device must answer before it does anything.
CUresult refusal(const Device& device);

// Runs a kernel now; a fault stays with the device.
CUresult execute(Device& device, const Launch& launch);
CUresult allocate(Device& device, size_t bytes, CUdeviceptr* pointer);

// Memory of the host that was allocated through the driver.
void* allocate_pinned(size_t bytes);
bool release_pinned(void* pointer);
// Memory that the process had already.
void register_pinned(void* pointer, size_t bytes);
bool unregister_pinned(void* pointer);
bool is_pinned(const void* pointer);

}  // namespace umbel_emulated
