// Switches between stacks: what a fiber is, without a scheduler.
#pragma once

#include <cstdint>

// Saves the callee's registers on the running stack, its address in `*from`, and goes on with the
// stack that was saved as `to`. Neither signal mask nor rounding mode are touched, which makes it
// about as dear as a call.
extern "C" void umbel_fiber_switch(void** from, void* to);

namespace umbel_emulated {

// A stack on which `umbel_fiber_switch` begins with `entry`, which must not return. `top` is
// aligned to 16 bytes.
inline void* prepare_fiber(char* top, void (*entry)()) {
#if defined(__x86_64__)
    // Six registers, the address to which the switch returns, and a return address for `entry`.
    auto* stack = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 8; i++) {
        stack[i] = nullptr;
    }
    stack[6] = reinterpret_cast<void*>(entry);
#elif defined(__aarch64__)
    // Twelve general registers, of which the last is the link register, and eight of vectors.
    auto* stack = reinterpret_cast<void**>(top) - 20;
    for (int i = 0; i < 20; i++) {
        stack[i] = nullptr;
    }
    stack[11] = reinterpret_cast<void*>(entry);
#else
#error "the emulator switches stacks on x86_64 and aarch64 only"
#endif
    return stack;
}

}  // namespace umbel_emulated
