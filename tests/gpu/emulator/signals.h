// Faults of the processor and of the compiler's checks while a kernel runs, turned into reports.
#pragma once

#include <csignal>
#include <cstdint>
#include <functional>
#include <string>

namespace umbel_emulated {

// Takes the signals of bad accesses over while it lives. Those that do not come from a kernel go to
// whoever had them before.
class SignalHandlers {
  public:
    explicit SignalHandlers(const std::function<std::string(uintptr_t)>& describe);
    SignalHandlers(const SignalHandlers&) = delete;
    SignalHandlers& operator=(const SignalHandlers&) = delete;
    ~SignalHandlers();
};

}  // namespace umbel_emulated
