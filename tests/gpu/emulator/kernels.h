// The table of kernels. `build.sh` writes a line `UMBEL_KERNEL(name, bounds...)` for each.
#pragma once

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace umbel_emulated {

struct Kernel {
    std::string name;
    // The first argument of its `__launch_bounds__`, or what a block may have.
    unsigned threads_max;
    // Copies the arguments to which `cuLaunchKernel` points; the result runs one thread with them.
    // Null where one is missing.
    std::function<std::function<void()>(void** arguments)> bind;
};

// Null where there is no such kernel.
const Kernel* find_kernel(const std::string& name);
bool register_kernel(Kernel kernel);

template <typename... Parameters, size_t... I>
std::function<void()> bind_arguments(void (*kernel)(Parameters...), void** arguments,
                                     std::index_sequence<I...>) {
    if ((... || (arguments == nullptr || arguments[I] == nullptr))) {
        return nullptr;
    }
    std::tuple<std::decay_t<Parameters>...> copies{
        *static_cast<const std::decay_t<Parameters>*>(arguments[I])...};
    return [=] { std::apply(kernel, copies); };
}

template <typename... Parameters>
Kernel kernel_of(const char* name, unsigned threads_max, void (*kernel)(Parameters...)) {
    return {name, threads_max, [kernel](void** arguments) {
                return bind_arguments(kernel, arguments, std::index_sequence_for<Parameters...>{});
            }};
}

constexpr unsigned first_bound(unsigned threads = 1024, unsigned = 0, unsigned = 0) {
    return threads;
}

}  // namespace umbel_emulated

#define UMBEL_KERNEL(name, ...)                                                      \
    static const bool umbel_registered_##name = ::umbel_emulated::register_kernel(   \
        ::umbel_emulated::kernel_of(#name, ::umbel_emulated::first_bound(__VA_ARGS__), name));
