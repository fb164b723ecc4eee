// The emulated devices. See `device.h`.
#include "device.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "sanitizer.h"

namespace umbel_emulated {
namespace {

constexpr size_t PAGE_BYTES = 4 << 10;
// On both sides of an allocation, of addresses only: an index that is wrong by up to some millions
// meets them and no other allocation.
constexpr size_t GUARD_BYTES = 16 << 20;
// What cuMemAlloc aligns to.
constexpr size_t ALIGNMENT = 256;
// Bytes on both sides of an allocation that are looked at after each launch.
constexpr size_t WATCHED_BYTES = 256;
// A byte of which any number of bytes are a NaN: what fresh memory holds.
constexpr int POISON = 0xff;
// No more of an allocation is poisoned, so that a large cache takes no memory until it is used.
constexpr size_t POISONED_BYTES_MAX = 64 << 20;

uint64_t number(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    if (text == nullptr) {
        return otherwise;
    }
    char* end;
    errno = 0;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) {
        report(std::string(name) + " is no number: " + text);
        std::abort();
    }
    return value;
}

std::optional<uint64_t> limit(const char* name) {
    if (std::getenv(name) == nullptr) {
        return std::nullopt;
    }
    return number(name, 0);
}

size_t aligned_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

bool is_intact(const char* from, const char* to) {
    return std::all_of(from, to, [](char c) { return c == static_cast<char>(POISON); });
}

uint64_t launches = 0;
uint64_t allocations = 0;

// Begin and size. Never destroyed, as all that a thread may still use while the process ends.
auto& pinned = *new std::map<uintptr_t, size_t>;

bool is_lost() { return settings().lose_after && launches >= *settings().lose_after; }

pthread_key_t current_key() {
    // Not a thread_local: that storage is shared memory here.
    static const pthread_key_t key = [] {
        pthread_key_t key;
        pthread_key_create(&key, nullptr);
        return key;
    }();
    return key;
}

std::map<std::string, Kernel>& kernels() {
    static auto& all = *new std::map<std::string, Kernel>;
    return all;
}

}  // namespace

const Settings& settings() {
    static const Settings all{
        number("UMBEL_EMULATED_MEMORY", uint64_t{2} << 30),
        static_cast<unsigned>(number("UMBEL_EMULATED_DEVICES", 1)),
        static_cast<unsigned>(number("UMBEL_EMULATED_DRIVER", 12040)),
        static_cast<unsigned>(number("UMBEL_EMULATED_CAPABILITY", 80)),
        static_cast<unsigned>(number("UMBEL_EMULATED_MULTIPROCESSORS", 4)),
        number("UMBEL_EMULATED_SEED", 0),
        limit("UMBEL_EMULATED_LOSE_AFTER"),
        static_cast<CUresult>(number("UMBEL_EMULATED_LOST_WITH", CUDA_ERROR_ECC_UNCORRECTABLE)),
        limit("UMBEL_EMULATED_REFUSE_AFTER"),
        number("UMBEL_EMULATED_REFUSE_EVERY", 0),
    };
    return all;
}

void Memory::clear() {
    for (const auto& [_, allocation] : allocations) {
        give_back(allocation);
    }
    allocations.clear();
    used_bytes = 0;
}

// The end lies at the guard, or less than the alignment before it.
CUdeviceptr Memory::allocate(size_t bytes) {
    const size_t aligned = aligned_up(bytes, ALIGNMENT);
    const size_t pages = aligned_up(aligned + WATCHED_BYTES, PAGE_BYTES);
    const size_t mapped = pages + 2 * GUARD_BYTES;
    void* map =
        mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return 0;
    }
    char* first = static_cast<char*>(map) + GUARD_BYTES;
    if (mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) {
        munmap(map, mapped);
        return 0;
    }
    char* data = first + pages - aligned;
    std::memset(data - WATCHED_BYTES, POISON, WATCHED_BYTES + std::min(bytes, POISONED_BYTES_MAX));
    std::memset(data + bytes, POISON, aligned - bytes);
    poison_for_sanitizer(data - WATCHED_BYTES, WATCHED_BYTES);
    poison_for_sanitizer(data + bytes, aligned - bytes);
    allocations[reinterpret_cast<uintptr_t>(data)] = {static_cast<char*>(map), mapped, data, bytes};
    used_bytes += aligned;
    return reinterpret_cast<uintptr_t>(data);
}

bool Memory::release(CUdeviceptr pointer) {
    const auto found = allocations.find(pointer);
    if (found == allocations.end()) {
        return false;
    }
    used_bytes -= aligned_up(found->second.bytes, ALIGNMENT);
    give_back(found->second);
    allocations.erase(found);
    return true;
}

void Memory::give_back(const Allocation& allocation) {
    unpoison_for_sanitizer(allocation.map, allocation.mapped);
    munmap(allocation.map, allocation.mapped);
}

bool Memory::holds(CUdeviceptr pointer, size_t bytes) const {
    auto found = allocations.upper_bound(pointer);
    if (found == allocations.begin()) {
        return false;
    }
    const auto& [begin, allocation] = *--found;
    const size_t offset = pointer - begin;
    return offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

std::string Memory::describe(uintptr_t address) const {
    const auto after = allocations.upper_bound(address);
    const auto in_words = [](uintptr_t distance, const char* where, size_t bytes) {
        return std::to_string(distance) + where + " an allocation of " + std::to_string(bytes) +
               " bytes";
    };
    if (after != allocations.begin()) {
        const auto& [begin, allocation] = *std::prev(after);
        if (address < reinterpret_cast<uintptr_t>(allocation.map) + allocation.mapped) {
            return in_words(address - begin - allocation.bytes, " bytes past the end of",
                            allocation.bytes);
        }
    }
    if (after != allocations.end() &&
        address >= reinterpret_cast<uintptr_t>(after->second.map)) {
        return in_words(after->first - address, " bytes before", after->second.bytes);
    }
    return "in no allocation";
}

std::string Memory::damage() const {
    if (IS_SANITIZED) {
        return "";
    }
    for (const auto& [_, allocation] : allocations) {
        const char* end = allocation.data + allocation.bytes;
        const char* guard = allocation.map + allocation.mapped - GUARD_BYTES;
        if (!is_intact(end, guard)) {
            return "past the end of an allocation of " + std::to_string(allocation.bytes) +
                   " bytes";
        }
        if (!is_intact(allocation.data - WATCHED_BYTES, allocation.data)) {
            return "before an allocation of " + std::to_string(allocation.bytes) + " bytes";
        }
    }
    return "";
}

std::recursive_mutex& driver_lock() {
    static std::recursive_mutex lock;
    return lock;
}

Device* device_at(int ordinal) {
    static auto& all = *new std::vector<Device>(settings().devices);
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= all.size()) {
        return nullptr;
    }
    all[ordinal].ordinal = ordinal;
    return &all[ordinal];
}

Device* current_device() { return static_cast<Device*>(pthread_getspecific(current_key())); }
void set_current_device(Device* device) { pthread_setspecific(current_key(), device); }

CUresult refusal(const Device& device) {
    return is_lost() ? settings().lost_with : device.error;
}

CUresult execute(Device& device, const Launch& launch) {
    if (is_lost()) {
        return settings().lost_with;
    }
    launches++;
    const auto describe = [&](uintptr_t address) { return device.memory.describe(address); };
    CUresult result = run(launch, settings().seed, describe);
    if (result == CUDA_SUCCESS) {
        if (const std::string damage = device.memory.damage(); !damage.empty()) {
            report("kernel " + launch.kernel + " wrote " + damage);
            result = CUDA_ERROR_ILLEGAL_ADDRESS;
        }
    }
    return result;
}

CUresult allocate(Device& device, size_t bytes, CUdeviceptr* pointer) {
    if (bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const bool refused = settings().refuse_after && allocations >= *settings().refuse_after;
    const uint64_t free = settings().memory_bytes - device.memory.used();
    if (refused || bytes > free || aligned_up(bytes, ALIGNMENT) > free) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pointer = device.memory.allocate(bytes);
    if (*pointer == 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    allocations++;
    return CUDA_SUCCESS;
}

void* allocate_pinned(size_t bytes) {
    void* memory = std::aligned_alloc(PAGE_BYTES, aligned_up(bytes, PAGE_BYTES));
    if (memory != nullptr) {
        register_pinned(memory, bytes);
    }
    return memory;
}

bool release_pinned(void* pointer) {
    const bool known = unregister_pinned(pointer);
    if (known) {
        std::free(pointer);
    }
    return known;
}

void register_pinned(void* pointer, size_t bytes) {
    pinned[reinterpret_cast<uintptr_t>(pointer)] = bytes;
}

bool unregister_pinned(void* pointer) {
    return pinned.erase(reinterpret_cast<uintptr_t>(pointer)) != 0;
}

bool is_pinned(const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const auto after = pinned.upper_bound(address);
    if (after == pinned.begin()) {
        return false;
    }
    const auto& [begin, bytes] = *std::prev(after);
    return address - begin < bytes;
}

const Kernel* find_kernel(const std::string& name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

bool register_kernel(Kernel kernel) {
    std::string name = kernel.name;
    return kernels().emplace(std::move(name), std::move(kernel)).second;
}

}  // namespace umbel_emulated
