// Faults of the processor (an access beside an allocation) and of the compiler's checks (alignment,
// an index beyond an array, a shift by too much, a division by zero). The checks call functions
// that GCC's sanitizer library usually provides; here they are, so that no library is needed and
// the report can name the thread of the kernel.
#include "signals.h"

#include <ucontext.h>

#include "block.h"
#include "sanitizer.h"

namespace umbel_emulated {
namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr size_t COUNT = sizeof SIGNALS / sizeof *SIGNALS;

struct sigaction before[COUNT];
stack_t stack_before;
alignas(16) char stack_of_handler[64 << 10];
const std::function<std::string(uintptr_t)>* describe_address;

std::string access_of(const ucontext_t* context) {
#if defined(__x86_64__)
    // Bit 1 of the error code of a page fault is set for a write.
    return context->uc_mcontext.gregs[REG_ERR] & 2 ? "wrote to" : "read from";
#else
    (void)context;
    return "accessed";
#endif
}

// Leaves the handler by a switch to the scheduler's stack; the fiber is abandoned with it. Nothing
// stays blocked, since the handler was installed with SA_NODEFER.
void handle(int signal, siginfo_t* info, void* context) {
    for (size_t i = 0; i < COUNT; i++) {
        if (SIGNALS[i] == signal && !inside_kernel()) {
            sigaction(signal, &before[i], nullptr);
            return;
        }
    }
    if (signal == SIGFPE) {
        fault(CUDA_ERROR_LAUNCH_FAILED, "divided an integer by zero");
    }
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    std::string place = describe_block_memory(address);
    if (place.empty()) {
        place = (*describe_address)(address);
    }
    fault(CUDA_ERROR_ILLEGAL_ADDRESS,
          access_of(static_cast<ucontext_t*>(context)) + " an address " + place);
}

}  // namespace

SignalHandlers::SignalHandlers(const std::function<std::string(uintptr_t)>& describe) {
    describe_address = &describe;
    on_sanitizer_report([](const char*) {
        if (inside_kernel()) {
            report(place_of_running() + " made the bad access below");
        }
    });
    stack_t stack{};
    stack.ss_sp = stack_of_handler;
    stack.ss_size = sizeof stack_of_handler;
    sigaltstack(&stack, &stack_before);
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t i = 0; i < COUNT; i++) {
        sigaction(SIGNALS[i], &action, &before[i]);
    }
}

SignalHandlers::~SignalHandlers() {
    for (size_t i = 0; i < COUNT; i++) {
        sigaction(SIGNALS[i], &before[i], nullptr);
    }
    sigaltstack(&stack_before, nullptr);
}

// What GCC passes to its checks begins with the place in the source.
struct CheckedPlace {
    const char* file;
    uint32_t line;
    uint32_t column;
};

[[noreturn]] void fail_check(CUresult result, const CheckedPlace* place, const char* what) {
    fault(result, std::string(what) + " at " + place->file + ":" + std::to_string(place->line));
}

}  // namespace umbel_emulated

using umbel_emulated::CheckedPlace;
using umbel_emulated::fail_check;

extern "C" {

void __ubsan_handle_type_mismatch_v1_abort(const CheckedPlace* place, uintptr_t) {
    fail_check(CUDA_ERROR_MISALIGNED_ADDRESS, place, "used a misaligned address");
}

void __ubsan_handle_out_of_bounds_abort(const CheckedPlace* place, uintptr_t) {
    fail_check(CUDA_ERROR_ILLEGAL_ADDRESS, place, "used an index beyond its array");
}

void __ubsan_handle_shift_out_of_bounds_abort(const CheckedPlace* place, uintptr_t, uintptr_t) {
    fail_check(CUDA_ERROR_LAUNCH_FAILED, place, "shifted by the width of the type or more");
}

void __ubsan_handle_divrem_overflow_abort(const CheckedPlace* place, uintptr_t, uintptr_t) {
    fail_check(CUDA_ERROR_LAUNCH_FAILED, place, "divided an integer by zero");
}

}  // extern "C"
