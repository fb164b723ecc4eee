// The driver's interface: memory of the device, pinned memory of the host, copies.
#include <cstring>
#include <memory>
#include <vector>

#include "driver.h"
#include "stream.h"

using namespace umbel_emulated;

namespace {

char* host_view(CUdeviceptr pointer) { return reinterpret_cast<char*>(pointer); }

// A copy or a fill that touches memory of the device, with what has to be allocated for it.
struct Touched {
    CUdeviceptr pointer;
    size_t bytes;
};

bool are_allocated(const Device& device, const std::vector<Touched>& all) {
    for (const auto& [pointer, bytes] : all) {
        if (!device.memory.holds(pointer, bytes)) {
            return false;
        }
    }
    return true;
}

// At once, after everything that a call without a stream waits for.
CUresult do_now(const std::vector<Touched>& touched, const std::function<void()>& move) {
    return with_device([&](Device& device) {
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        if (!are_allocated(device, touched)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        const CUresult result = drain_dependent(device);
        if (result == CUDA_SUCCESS) {
            move();
        }
        return result;
    });
}

CUresult put_on_stream(Device& device, Stream& stream, std::vector<Touched> touched,
                       std::function<void()> move) {
    if (!are_allocated(device, touched)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // A graph may run after its memory has been freed, which a device does not notice in time.
    return enqueue(stream, [&device, touched = std::move(touched), move = std::move(move)] {
        if (!are_allocated(device, touched)) {
            report("a copy or fill on a stream touches memory that has been freed");
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        }
        move();
        return CUDA_SUCCESS;
    });
}

template <typename Body>
CUresult with_stream(const void* handle, Body body) {
    return with_device([&](Device& device) {
        const auto stream = find_stream(device, handle);
        return stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : body(device, *stream);
    });
}

// On the default stream, after the call has returned.
CUresult do_soon(std::vector<Touched> touched, std::function<void()> move) {
    return with_device([&](Device& device) {
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        Stream& stream = *find_stream(device, nullptr);
        return put_on_stream(device, stream, std::move(touched), std::move(move));
    });
}

}  // namespace

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    return with_device([&](Device& device) {
        *total = settings().memory_bytes;
        *free = *total - device.memory.used();
        return CUDA_SUCCESS;
    });
}

API cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    return with_device([&](Device& device) {
        const CUresult refused = refuse_in_capture();
        return refused != CUDA_SUCCESS ? refused : allocate(device, bytes, pointer);
    });
}

API cuMemFree_v2(CUdeviceptr pointer) {
    return with_device([&](Device& device) {
        if (pointer == 0) {
            return CUDA_SUCCESS;
        }
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        const CUresult result = drain_all(device);
        if (!device.memory.release(pointer)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return result;
    });
}

API cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        return stream.capture ? CUDA_ERROR_NOT_SUPPORTED : allocate(device, bytes, pointer);
    });
}

API cuMemFreeAsync(CUdeviceptr pointer, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        if (stream.capture) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        if (!device.memory.holds(pointer, 1)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        return enqueue(stream, [&device, pointer] {
            return device.memory.release(pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        });
    });
}

API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    return with_device([&](Device&) {
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        if (bytes == 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        *pointer = allocate_pinned(bytes);
        return *pointer == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
    });
}

API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

API cuMemFreeHost(void* pointer) {
    return with_device([&](Device& device) {
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        const CUresult result = drain_all(device);
        return release_pinned(pointer) ? result : CUDA_ERROR_INVALID_VALUE;
    });
}

API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    return with_device([&](Device&) {
        register_pinned(pointer, bytes);
        return CUDA_SUCCESS;
    });
}

API cuMemHostUnregister(void* pointer) {
    return with_device([&](Device& device) {
        const CUresult result = drain_all(device);
        return unregister_pinned(pointer) ? result : CUDA_ERROR_INVALID_VALUE;
    });
}

// From memory that is not pinned CUDA has read the bytes when it returns, and may write them later.
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    if (is_pinned(from)) {
        return do_now({{to, bytes}}, [=] { std::memcpy(host_view(to), from, bytes); });
    }
    const auto* begin = static_cast<const char*>(from);
    auto copy = std::make_shared<std::vector<char>>(begin, begin + bytes);
    return do_soon({{to, bytes}}, [to, copy = std::move(copy)] {
        std::memcpy(host_view(to), copy->data(), copy->size());
    });
}

API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return do_now({{from, bytes}}, [=] { std::memcpy(to, host_view(from), bytes); });
}

API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return do_now({{to, bytes}, {from, bytes}},
                  [=] { std::memmove(host_view(to), host_view(from), bytes); });
}

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    return do_soon({{to, bytes}}, [=] { std::memset(host_view(to), value, bytes); });
}

// From memory that is not pinned CUDA has read the bytes when it returns. From pinned memory it
// reads them later, and a graph reads them each time.
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        if (stream.capture) {
            return put_on_stream(device, stream, {{to, bytes}},
                                 [=] { std::memcpy(host_view(to), from, bytes); });
        }
        const auto* begin = static_cast<const char*>(from);
        auto copy = std::make_shared<std::vector<char>>(begin, begin + bytes);
        if (is_pinned(from)) {
            // Nobody knows which of the bytes a device has read, of memory that is written meanwhile.
            const CUresult result = enqueue(stream, [from, copy] {
                if (std::memcmp(from, copy->data(), copy->size()) == 0) {
                    return CUDA_SUCCESS;
                }
                report("pinned memory was written before a copy under way had read it");
                return CUDA_ERROR_ILLEGAL_ADDRESS;
            });
            if (result != CUDA_SUCCESS) {
                return result;
            }
        }
        return put_on_stream(device, stream, {{to, bytes}}, [to, copy = std::move(copy)] {
            std::memcpy(host_view(to), copy->data(), copy->size());
        });
    });
}

// To memory that is not pinned CUDA has written the bytes when it returns.
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        const CUresult result = put_on_stream(device, stream, {{from, bytes}}, [=] {
            std::memcpy(to, host_view(from), bytes);
        });
        const bool waits = !stream.capture && !is_pinned(to);
        return result == CUDA_SUCCESS && waits ? drain(stream) : result;
    });
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        return put_on_stream(device, stream, {{to, bytes}, {from, bytes}},
                             [=] { std::memmove(host_view(to), host_view(from), bytes); });
    });
}

API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void* stream) {
    return with_stream(stream, [&](Device& device, Stream& stream) {
        return put_on_stream(device, stream, {{to, bytes}},
                             [=] { std::memset(host_view(to), value, bytes); });
    });
}
