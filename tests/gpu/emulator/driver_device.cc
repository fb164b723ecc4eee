// The driver's interface: the library, devices, contexts, and the names of errors.
#include <algorithm>
#include <cstring>

#include "driver.h"
#include "stream.h"

using namespace umbel_emulated;

namespace umbel_emulated {
namespace {

bool initialized = false;

struct Named {
    CUresult result;
    const char* name;
    const char* meaning;
};

#define NAMED(result, meaning) {result, #result, meaning}

constexpr Named ERRORS[] = {
    NAMED(CUDA_SUCCESS, "no error"),
    NAMED(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    NAMED(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    NAMED(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    NAMED(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    NAMED(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    NAMED(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    NAMED(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    NAMED(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    NAMED(CUDA_ERROR_CONTAINED, "Invalid access of peer GPU memory over nvlink or a hardware error"),
    NAMED(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    NAMED(CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
          "the provided PTX was compiled with an unsupported toolchain"),
    NAMED(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    NAMED(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    NAMED(CUDA_ERROR_NOT_READY, "device not ready"),
    NAMED(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    NAMED(CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered"),
    NAMED(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    NAMED(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    NAMED(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
          "operation not permitted when stream is capturing"),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
          "operation failed due to a previous error during capture"),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not initiated in this stream"),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
          "dependency created on uncaptured work in another stream"),
    NAMED(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a "
                                     "capturing stream"),
    NAMED(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture "
                                                  "sequence from another thread"),
};

const Named* find_error(CUresult result) {
    const auto* found = std::find_if(std::begin(ERRORS), std::end(ERRORS),
                                     [&](const Named& named) { return named.result == result; });
    return found == std::end(ERRORS) ? nullptr : found;
}

bool is_context(const Device* handle) {
    for (int ordinal = 0; const Device* device = device_at(ordinal); ordinal++) {
        if (device == handle) {
            return device->retained > 0;
        }
    }
    return false;
}

int attribute_of(CUdevice_attribute attribute) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return SHARED_BYTES_DEFAULT;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return shared_bytes_optin();
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
            return shared_bytes_multiprocessor();
        case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return SHARED_BYTES_RESERVED;
        case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 << 10;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 64 << 10;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return settings().multiprocessors;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 1536;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 16;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return settings().capability / 10;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return settings().capability % 10;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1'000'000;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 1'000'000;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 256;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 4 << 20;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
        // What the emulator does not have, such as pools of memory.
        default: return 0;
    }
}

}  // namespace

bool is_initialized() { return initialized; }

}  // namespace umbel_emulated

// The last report in words, for tests.
extern "C" __attribute__((visibility("default"))) const char* umbel_emulated_report() {
    return last_report();
}

API cuInit(unsigned flags) {
    const std::lock_guard guard(driver_lock());
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (settings().devices == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    initialized = true;
    return CUDA_SUCCESS;
}

// Needs no cuInit.
API cuDriverGetVersion(int* version) {
    *version = settings().driver_version;
    return CUDA_SUCCESS;
}

API cuGetErrorName(CUresult result, const char** name) {
    const Named* error = find_error(result);
    *name = error == nullptr ? nullptr : error->name;
    return error == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

API cuGetErrorString(CUresult result, const char** meaning) {
    const Named* error = find_error(result);
    *meaning = error == nullptr ? nullptr : error->meaning;
    return error == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

API cuDeviceGetCount(int* count) {
    const std::lock_guard guard(driver_lock());
    if (!initialized) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    *count = settings().devices;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice* device, int ordinal) {
    return about_device(ordinal, [&](Device&) {
        *device = ordinal;
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetName(char* name, int bytes, CUdevice device) {
    return about_device(device, [&](Device&) {
        if (bytes <= 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        std::strncpy(name, "Emulated GPU", bytes);
        name[bytes - 1] = '\0';
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetUuid(char* uuid, CUdevice device) {
    return about_device(device, [&](Device&) {
        std::memset(uuid, 0, 16);
        uuid[15] = static_cast<char>(device);
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetUuid_v2(char* uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }

API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    return about_device(device, [&](Device&) {
        *bytes = settings().memory_bytes;
        return CUDA_SUCCESS;
    });
}

API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    return about_device(device, [&](Device&) {
        if (attribute == 0 || attribute > CU_DEVICE_ATTRIBUTE_LAST) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        *value = attribute_of(attribute);
        return CUDA_SUCCESS;
    });
}

API cuDevicePrimaryCtxRetain(Device** context, CUdevice device) {
    return about_device(device, [&](Device& device) {
        if (const CUresult refused = refusal(device); refused != CUDA_SUCCESS) {
            return refused;
        }
        device.retained++;
        *context = &device;
        return CUDA_SUCCESS;
    });
}

// With the last holder the context goes, and with it memory, streams and the error of a kernel.
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return about_device(device, [&](Device& device) {
        if (device.retained == 0) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        if (--device.retained == 0) {
            drain_all(device);
            forget_streams(device);
            device.memory.clear();
            device.error = CUDA_SUCCESS;
        }
        return CUDA_SUCCESS;
    });
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned) {
    return about_device(device, [&](Device&) { return CUDA_SUCCESS; });
}

// Binding a thread fails neither for an error of a kernel nor for a lost device.
API cuCtxSetCurrent(Device* context) {
    const std::lock_guard guard(driver_lock());
    if (!initialized) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (context != nullptr && !is_context(context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    set_current_device(context);
    return CUDA_SUCCESS;
}

API cuCtxGetCurrent(Device** context) {
    const std::lock_guard guard(driver_lock());
    *context = current_device();
    return initialized ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

API cuCtxGetDevice(CUdevice* device) {
    return with_device([&](Device& current) {
        *device = current.ordinal;
        return CUDA_SUCCESS;
    });
}

API cuCtxSetFlags(unsigned) {
    return with_device([](Device&) { return CUDA_SUCCESS; });
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return with_device([&](Device&) {
        *least = 0;
        *greatest = 0;
        return CUDA_SUCCESS;
    });
}

API cuCtxSynchronize() {
    return with_device([](Device& device) {
        const CUresult refused = refuse_in_capture();
        return refused != CUDA_SUCCESS ? refused : drain_all(device);
    });
}
