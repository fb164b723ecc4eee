// What AddressSanitizer has to be told, in the build that has it.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace umbel_emulated {

#ifdef __SANITIZE_ADDRESS__
constexpr bool IS_SANITIZED = true;
#else
constexpr bool IS_SANITIZED = false;
#endif

// From now on an access to these bytes is reported.
inline void poison_for_sanitizer([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(at, bytes);
#endif
}

inline void unpoison_for_sanitizer([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(at, bytes);
#endif
}

// Has `f` called with each of its reports, after which the process ends.
inline void on_sanitizer_report([[maybe_unused]] void (*f)(const char*)) {
#ifdef __SANITIZE_ADDRESS__
    __asan_set_error_report_callback(f);
#endif
}

}  // namespace umbel_emulated
