// What the exported functions have in common.
#pragma once

#include "device.h"

#define API extern "C" __attribute__((visibility("default"))) CUresult

namespace umbel_emulated {

bool is_initialized();

// A call that needs a context: runs `body` with the current device unless the call is refused.
template <typename Body>
CUresult with_device(Body body) {
    const std::lock_guard guard(driver_lock());
    if (!is_initialized()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    Device* device = current_device();
    if (device == nullptr || device->retained == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (const CUresult refused = refusal(*device); refused != CUDA_SUCCESS) {
        return refused;
    }
    return body(*device);
}

// A call that asks about a device and needs no context.
template <typename Body>
CUresult about_device(int ordinal, Body body) {
    const std::lock_guard guard(driver_lock());
    if (!is_initialized()) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    Device* device = device_at(ordinal);
    return device == nullptr ? CUDA_ERROR_INVALID_DEVICE : body(*device);
}

}  // namespace umbel_emulated
