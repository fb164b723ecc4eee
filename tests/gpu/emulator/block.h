// One launch of a kernel, run block after block on the calling thread of the process.
#pragma once

#include <functional>
#include <string>

#include "abi.h"
#include "emulator.h"

namespace umbel_emulated {

struct Launch {
    std::string kernel;
    // One thread of the kernel, with its arguments.
    std::function<void()> body;
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
};

// The result of the launch. Whatever a real device would answer with an error, with silence or by
// standing still is reported on the standard error stream, with the kernel, the block and the
// thread. `describe` says what lies at an address of the device.
CUresult run(const Launch& launch, uint64_t seed,
             const std::function<std::string(uintptr_t)>& describe);

// Ends the launch for a fault of the running thread, which is never resumed.
[[noreturn]] void fault(CUresult result, const std::string& message);

// The stack guard of a running fiber, dynamic shared memory, or nothing that the launch knows.
std::string describe_block_memory(uintptr_t address);

// The kernel, block and thread that run.
std::string place_of_running();

// Whether a launch runs on the calling thread of the process.
bool inside_kernel();

// Writes a line to the standard error stream, and keeps it for `umbel_emulated_report`.
void report(const std::string& message);
const char* last_report();

}  // namespace umbel_emulated
