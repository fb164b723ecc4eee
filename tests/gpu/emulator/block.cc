// The threads of a block as fibers. A thread runs until a collective that others have not reached,
// or to its end; then the next one goes on. If none can, those that wait would wait for ever on a
// device too, and the launch ends with a report.
#include "block.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <vector>

#include "block_memory.h"
#include "fiber.h"
#include "sanitizer.h"
#include "signals.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace umbel_emulated {
namespace {

struct Copy {
    char* to;
    char bytes[16];
};

// A copy that the whole block waits for.
struct BulkCopy {
    char* to;
    std::vector<char> bytes;
    const void* barrier;
};

enum class State { ready, meets_warp, meets_block, ended };

struct Thread {
    void* stack_pointer;
    uint3 index;
    unsigned linear;
    State state;
    // What it waits in, while it meets others.
    const Call* call;
    Place place;
    // Copies that it has started and whose bytes are not there yet, and where each group of them
    // that was committed ends.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

class Block;

Block* block_running = nullptr;
Thread* running = nullptr;
std::string report_last;

class Block {
  public:
    Block(const Launch& launch, uint64_t seed)
        : launch(launch), seed(seed), dynamic(launch.shared_bytes), fixed(StaticShared::find()) {
        const unsigned count = launch.block.x * launch.block.y * launch.block.z;
        threads.resize(count);
    }

    // Runs the block of `blockIdx`.
    CUresult run() {
        dynamic.poison();
        std::memset(fixed.begin, POISON, fixed.bytes);
        bulk_copies.clear();
        ended = 0;
        waiting_in_block = 0;
        waiting_in_warp.fill(0);
        result = CUDA_SUCCESS;
        ready_count = 0;
        for (unsigned i = 0; i < threads.size(); i++) {
            begin_thread(i);
        }
        switch_to_next(&scheduler);
        running = nullptr;
        if (result == CUDA_SUCCESS && ended < threads.size()) {
            report_deadlock();
        }
        if (result == CUDA_SUCCESS && !dynamic.is_intact_outside()) {
            report(where() + " wrote beside its dynamic shared memory");
            result = CUDA_ERROR_ILLEGAL_ADDRESS;
        }
        return result;
    }

    [[noreturn]] void fail(CUresult why) {
        result = why;
        void* abandoned;
        umbel_fiber_switch(&abandoned, scheduler);
        __builtin_unreachable();
    }

    void meet(const Call& call) {
        Thread& self = *running;
        const unsigned lane = self.linear % 32;
        Thread* const warp = &self - lane;
        uint32_t& waiting = waiting_in_warp[self.linear / 32];
        check_mask(call, lane, warp);
        self.call = &call;
        self.state = State::meets_warp;
        waiting |= 1u << lane;
        if ((waiting & call.mask) != call.mask || !complete(call, warp)) {
            switch_to_next(&self.stack_pointer);
            return;
        }
        waiting &= ~call.mask;
        for_lanes(call.mask, [&](unsigned i) {
            warp[i].state = State::ready;
            if (&warp[i] != &self) {
                resume(&warp[i]);
            }
        });
    }

    void meet_block(const Place& place) {
        Thread& self = *running;
        self.state = State::meets_block;
        self.place = place;
        waiting_in_block++;
        if (waiting_in_block < threads.size()) {
            switch_to_next(&self.stack_pointer);
            return;
        }
        for (Thread& other : threads) {
            if (other.place.line() != place.line()) {
                fault(CUDA_ERROR_LAUNCH_FAILED,
                      "is in another place, " + call_at("__syncthreads", place) + ", than " +
                          name_of(other) + ", " + call_at("__syncthreads", other.place));
            }
            other.state = State::ready;
            if (&other != &self) {
                resume(&other);
            }
        }
        waiting_in_block = 0;
    }

    void let_others_run() {
        resume(running);
        switch_to_next(&running->stack_pointer);
    }

    [[noreturn]] void end_thread() {
        running->state = State::ended;
        ended++;
        switch_to_next(&running->stack_pointer);
        __builtin_unreachable();
    }

    std::string where() const {
        return "kernel " + launch.kernel + ", block " + name_of(blockIdx);
    }

    static std::string name_of(const uint3& index) {
        return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
               std::to_string(index.z) + ")";
    }

    static std::string name_of(const Thread& thread) { return "thread " + name_of(thread.index); }

    static std::string call_at(const char* name, const Place& place) {
        return std::string(name) + " at " + place.file_name() + ":" +
               std::to_string(place.line());
    }

    const Launch& launch;
    uint64_t seed;
    DynamicShared dynamic;
    StaticShared fixed;
    std::vector<BulkCopy> bulk_copies;
    static const Stacks& stacks() {
        static const Stacks all;
        return all;
    }

  private:
    void begin_thread(unsigned i) {
        Thread& thread = threads[i];
        thread.linear = i;
        thread.index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                        i / launch.block.x / launch.block.y};
        thread.state = State::ready;
        thread.copies.clear();
        thread.groups.clear();
        unpoison_for_sanitizer(stacks().bottom(i), stacks().top(i) - stacks().bottom(i));
        thread.stack_pointer = prepare_fiber(stacks().top(i), [] {
            block_running->launch.body();
            block_running->end_thread();
        });
        resume(&thread);
    }

    void check_mask(const Call& call, unsigned lane, const Thread* warp) const {
        if (!(call.mask >> lane & 1)) {
            fault(CUDA_ERROR_ILLEGAL_INSTRUCTION,
                  "is not in the mask of its " + call_at(call.name, call.place));
        }
        const size_t width = threads.data() + threads.size() - warp;
        if (width < 32 && call.mask >> width != 0) {
            fault(CUDA_ERROR_ILLEGAL_INSTRUCTION,
                  "asks in its " + call_at(call.name, call.place) +
                      " for lanes that its warp does not have");
        }
    }

    // Computes the results of a collective, unless one of its lanes waits in another.
    static bool complete(const Call& call, const Thread* warp) {
        void* data[32] = {};
        for (unsigned i = 0; i < 32; i++) {
            if (!(call.mask >> i & 1)) {
                continue;
            }
            const Call& other = *warp[i].call;
            if (other.complete != call.complete || other.mask != call.mask) {
                return false;
            }
            if (call.one_place && other.place.line() != call.place.line()) {
                fault(CUDA_ERROR_LAUNCH_FAILED,
                      "is in another place, " + call_at(call.name, call.place) + ", than " +
                          name_of(warp[i]) + ", " + call_at(other.name, other.place));
            }
            data[i] = other.data;
        }
        call.complete(data, call.mask);
        return true;
    }

    void resume(Thread* thread) {
        ready[(ready_first + ready_count++) % THREADS_MAX] = thread;
    }

    // Goes on with a thread that can, or with the scheduler. Returns when the caller can go on.
    void switch_to_next(void** from) {
        if (ready_count == 0) {
            umbel_fiber_switch(from, scheduler);
            return;
        }
        if (seed != 0) {
            // Any order is as good as any other; a kernel that lacks a barrier shows it in most.
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const size_t other = ready_first + (seed >> 33) % ready_count;
            std::swap(ready[ready_first], ready[other % THREADS_MAX]);
        }
        running = ready[ready_first];
        ready_first = (ready_first + 1) % THREADS_MAX;
        ready_count--;
        threadIdx = running->index;
        // Whoever lets others run may be the only one that can.
        if (from != static_cast<void**>(&running->stack_pointer)) {
            umbel_fiber_switch(from, running->stack_pointer);
        }
    }

    void report_deadlock() {
        const auto waits = [](const Thread& t) { return t.state != State::ended; };
        const Thread& stuck = *std::find_if(threads.begin(), threads.end(), waits);
        const auto is_missing = [&](const Thread& other) {
            if (stuck.state == State::meets_block) {
                return other.state != State::meets_block;
            }
            return other.linear / 32 == stuck.linear / 32 &&
                   (stuck.call->mask >> other.linear % 32 & 1) &&
                   (other.state != State::meets_warp ||
                    other.call->complete != stuck.call->complete ||
                    other.call->mask != stuck.call->mask);
        };
        const Thread& missing = *std::find_if(threads.begin(), threads.end(), is_missing);
        report(where() + ", " + name_of(stuck) + " waits for ever in " + call_of(stuck) +
               ": " + name_of(missing) +
               (missing.state == State::ended ? " has ended" : " waits in " + call_of(missing)));
        result = CUDA_ERROR_LAUNCH_FAILED;
    }

    static std::string call_of(const Thread& thread) {
        if (thread.state == State::meets_block) {
            return call_at("__syncthreads", thread.place);
        }
        char mask[32];
        std::snprintf(mask, sizeof mask, " with mask %08x", thread.call->mask);
        return call_at(thread.call->name, thread.call->place) + mask;
    }

    std::vector<Thread> threads;
    // A ring of the threads that can go on. Each is in it at most once.
    std::array<Thread*, THREADS_MAX> ready;
    size_t ready_first = 0;
    size_t ready_count = 0;
    size_t ended = 0;
    size_t waiting_in_block = 0;
    // The lanes of each warp that wait in a collective.
    std::array<uint32_t, THREADS_MAX / 32> waiting_in_warp{};
    CUresult result = CUDA_SUCCESS;
    void* scheduler = nullptr;
};

pthread_t thread_of_launch;

}  // namespace

CUresult run(const Launch& launch, uint64_t seed,
             const std::function<std::string(uintptr_t)>& describe) {
    Block block(launch, seed);
    block_running = &block;
    thread_of_launch = pthread_self();
    const SignalHandlers handlers(describe);
    blockDim = launch.block;
    gridDim = launch.grid;
    CUresult result = CUDA_SUCCESS;
    const uint64_t count = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    for (uint64_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        // With an odd seed from the last block to the first.
        const uint64_t block_index = seed % 2 == 0 ? i : count - 1 - i;
        blockIdx = {static_cast<unsigned>(block_index % launch.grid.x),
                    static_cast<unsigned>(block_index / launch.grid.x % launch.grid.y),
                    static_cast<unsigned>(block_index / launch.grid.x / launch.grid.y)};
        result = block.run();
    }
    block_running = nullptr;
    return result;
}

void meet(const Call& call) { block_running->meet(call); }
void meet_block(const Place& place) { block_running->meet_block(place); }
unsigned lane() { return running->linear % 32; }
void* dynamic_shared() { return block_running->dynamic.begin; }

void fault(CUresult result, const std::string& message) {
    report(place_of_running() + " " + message);
    block_running->fail(result);
}

std::string place_of_running() {
    return block_running->where() + ", " + Block::name_of(*running);
}

void trap(const Place& place) {
    fault(CUDA_ERROR_LAUNCH_FAILED, "stopped itself, " + Block::call_at("__trap", place));
}

bool inside_kernel() {
    return running != nullptr && pthread_equal(thread_of_launch, pthread_self());
}

std::string describe_block_memory(uintptr_t address) {
    if (Block::stacks().is_guard(address)) {
        return "beyond the emulated thread's stack";
    }
    return block_running->dynamic.is_near(address) ? "beside dynamic shared memory" : "";
}

// The bytes are read now and written when their group is waited for. Until then the place is
// poisoned: who reads it too early, or still needs what it held, meets NaN.
void copy_later(void* shared, const void* global, bool valid, const Place& place) {
    const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
    if (misaligned(shared) || (valid && misaligned(global))) {
        fault(CUDA_ERROR_MISALIGNED_ADDRESS,
              "copies 16 bytes from or to an address that is no multiple of 16, " +
                  Block::call_at("copy_async_16", place));
    }
    if (!block_running->dynamic.holds(shared, 16) && !block_running->fixed.holds(shared, 16)) {
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "copies to what is no shared memory, " +
                                              Block::call_at("copy_async_16", place));
    }
    Copy copy{static_cast<char*>(shared), {}};
    if (valid) {
        std::memcpy(copy.bytes, global, sizeof copy.bytes);
    }
    std::memset(shared, POISON, sizeof copy.bytes);
    running->copies.push_back(copy);
}

// As `copy_later`; each waiting thread lets the others run.
void copy_bulk_later(void* shared, const void* global, uint32_t bytes, const void* barrier, const Place& place) {
    const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
    if ((address(shared) | address(global) | bytes) % 16 != 0) {
        fault(CUDA_ERROR_MISALIGNED_ADDRESS,
              "copies what is no multiple of 16 bytes, " + Block::call_at("copy_bulk", place));
    }
    if (!block_running->dynamic.holds(shared, bytes)) {
        fault(CUDA_ERROR_ILLEGAL_ADDRESS,
              "copies to what is no shared memory, " + Block::call_at("copy_bulk", place));
    }
    const auto* from = static_cast<const char*>(global);
    block_running->bulk_copies.push_back({static_cast<char*>(shared), {from, from + bytes}, barrier});
    std::memset(shared, POISON, bytes);
}

size_t finish_bulk_copies(const void* barrier) {
    size_t done = 0;
    std::erase_if(block_running->bulk_copies, [&](const BulkCopy& copy) {
        if (copy.barrier != barrier) {
            return false;
        }
        std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
        done += copy.bytes.size();
        return true;
    });
    return done;
}

// Far more turns than a kernel of ours takes.
constexpr unsigned TURNS_MAX = 1000000;

void wait_until(const std::function<bool()>& holds, const char* name, const Place& place) {
    for (unsigned turn = 0; !holds(); turn++) {
        if (turn == TURNS_MAX) {
            fault(CUDA_ERROR_LAUNCH_FAILED, "waits for ever in " + Block::call_at(name, place));
        }
        block_running->let_others_run();
    }
}

void commit_copies() { running->groups.push_back(running->copies.size()); }

void wait_for_copies(unsigned groups_left) {
    auto& groups = running->groups;
    auto& copies = running->copies;
    if (groups.size() <= groups_left) {
        return;
    }
    const size_t done = groups.size() - groups_left;
    const size_t end = groups[done - 1];
    for (size_t i = 0; i < end; i++) {
        std::memcpy(copies[i].to, copies[i].bytes, sizeof copies[i].bytes);
    }
    copies.erase(copies.begin(), copies.begin() + end);
    groups.erase(groups.begin(), groups.begin() + done);
    for (size_t& group : groups) {
        group -= end;
    }
}

void report(const std::string& message) {
    report_last = message;
    std::fprintf(stderr, "emulated driver: %s\n", message.c_str());
}

const char* last_report() { return report_last.c_str(); }

}  // namespace umbel_emulated
