// The driver's interface: streams, captures and graphs, events.
#include <map>
#include <memory>

#include "driver.h"
#include "stream.h"

using namespace umbel_emulated;

namespace {

// What a graph takes of the device's memory once it can run, for each of its nodes: enough that whoever
// counts on having it notices when it is not there.
constexpr size_t NODE_BYTES = 8 << 10;

// How much of it when it is made; the rest when it first runs.
constexpr size_t MADE_PART = 4;

struct Executable {
    Graph graph;
    CUdeviceptr memory;
    // Null until it has run.
    CUdeviceptr rest = 0;
};

size_t bytes_of(const Graph& graph) { return (graph.nodes.size() + 1) * NODE_BYTES; }

// Never destroyed, as all that a thread may still use while the process ends.
auto& events = *new std::map<const void*, std::shared_ptr<Event>>;
auto& graphs = *new std::map<const void*, std::shared_ptr<Graph>>;
auto& executables = *new std::map<const void*, std::shared_ptr<Executable>>;

// What a handle stands for, or null.
template <typename T>
T find(const std::map<const void*, T>& all, const void* handle) {
    const auto found = all.find(handle);
    return found == all.end() ? nullptr : found->second;
}

template <typename T, typename Handle>
void keep(std::map<const void*, std::shared_ptr<T>>& all, std::shared_ptr<T> kept,
          Handle* handle) {
    *handle = const_cast<void*>(static_cast<const void*>(kept.get()));
    all[kept.get()] = std::move(kept);
}

template <typename Body>
CUresult with_stream(const void* handle, Body body) {
    return with_device([&](Device& device) {
        const auto stream = find_stream(device, handle);
        return stream == nullptr ? CUDA_ERROR_INVALID_HANDLE : body(device, stream);
    });
}

template <typename Body>
CUresult with_event(const void* handle, Body body) {
    return with_device([&](Device& device) {
        const auto event = find(events, handle);
        return event == nullptr ? CUDA_ERROR_INVALID_HANDLE : body(device, event);
    });
}

// To wait for a stream under capture is an error that costs the capture.
CUresult refuse_captured(Stream& stream) {
    if (!stream.capture) {
        return CUDA_SUCCESS;
    }
    stream.capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace

API cuStreamCreate(void** handle, unsigned flags) {
    return with_device([&](Device& device) {
        *handle = create_stream(device, flags & CU_STREAM_NON_BLOCKING);
        return CUDA_SUCCESS;
    });
}

API cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    return cuStreamCreate(handle, flags);
}

API cuStreamDestroy_v2(void* handle) {
    return with_device([&](Device& device) {
        return destroy_stream(device, handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

API cuStreamSynchronize(void* handle) {
    return with_stream(handle, [](Device& device, const std::shared_ptr<Stream>& stream) {
        if (const CUresult refused = refuse_captured(*stream); refused != CUDA_SUCCESS) {
            return refused;
        }
        // Who waits for the default stream waits for all that it waits for.
        const bool is_default = stream == find_stream(device, nullptr);
        return is_default ? drain_dependent(device) : drain(*stream);
    });
}

// Each question brings the stream one operation further, so that who asks often gets there.
API cuStreamQuery(void* handle) {
    return with_stream(handle, [](Device& device, const std::shared_ptr<Stream>& stream) {
        if (const CUresult refused = refuse_captured(*stream); refused != CUDA_SUCCESS) {
            return refused;
        }
        return advance(*stream) ? CUDA_ERROR_NOT_READY : refusal(device);
    });
}

API cuStreamWaitEvent(void* handle, void* event, unsigned) {
    return with_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        const auto found = find(events, event);
        return found == nullptr ? CUDA_ERROR_INVALID_HANDLE : wait_for_event(*stream, found);
    });
}

API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    return with_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        return enqueue(*stream, [=] {
            function(argument);
            return CUDA_SUCCESS;
        });
    });
}

API cuStreamBeginCapture_v2(void* handle, CUstreamCaptureMode mode) {
    return with_stream(handle, [&](Device& device, const std::shared_ptr<Stream>& stream) {
        // The default stream cannot be captured.
        if (stream == find_stream(device, nullptr)) {
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        if (stream->capture || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        stream->capture = Capture{mode, pthread_self(), false, {}};
        return CUDA_SUCCESS;
    });
}

API cuStreamEndCapture(void* handle, void** graph) {
    return with_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        *graph = nullptr;
        if (!stream->capture) {
            return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
        }
        if (stream->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
            !pthread_equal(stream->capture->thread, pthread_self())) {
            return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
        }
        const Capture capture = std::move(*stream->capture);
        stream->capture.reset();
        if (capture.invalidated) {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        keep(graphs, std::make_shared<Graph>(capture.graph), graph);
        return CUDA_SUCCESS;
    });
}

API cuStreamIsCapturing(void* handle, CUstreamCaptureStatus* status) {
    return with_stream(handle, [&](Device&, const std::shared_ptr<Stream>& stream) {
        *status = !stream->capture               ? CU_STREAM_CAPTURE_STATUS_NONE
                  : stream->capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        return CUDA_SUCCESS;
    });
}

API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    return with_device([&](Device& device) {
        // Flag 4 asks for launches by kernels.
        const auto found = find(graphs, graph);
        if (found == nullptr || (flags & 4) != 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        CUdeviceptr memory = 0;
        const CUresult refused = allocate(device, bytes_of(*found) / MADE_PART, &memory);
        if (refused != CUDA_SUCCESS) {
            return refused;
        }
        keep(executables, std::make_shared<Executable>(Executable{*found, memory}), executable);
        return CUDA_SUCCESS;
    });
}

API cuGraphInstantiate_v2(void** executable, void* graph, void**, char*, size_t) {
    return cuGraphInstantiateWithFlags(executable, graph, 0);
}

API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    return with_device([&](Device&) {
        const auto found = find(graphs, graph);
        if (found == nullptr) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        *count = found->nodes.size();
        return nodes == nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
    });
}

API cuGraphUpload(void* executable, void*) {
    return with_device([&](Device&) {
        return executables.count(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

API cuGraphLaunch(void* executable, void* handle) {
    return with_stream(handle, [&](Device& device, const std::shared_ptr<Stream>& stream) {
        const auto found = find(executables, executable);
        if (found == nullptr) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (found->rest == 0) {
            const size_t bytes = bytes_of(found->graph);
            const CUresult refused = allocate(device, bytes - bytes / MADE_PART, &found->rest);
            if (refused != CUDA_SUCCESS) {
                return refused;
            }
        }
        return enqueue(*stream, [found] {
            for (const Work& node : found->graph.nodes) {
                if (const CUresult result = node(); result != CUDA_SUCCESS) {
                    return result;
                }
            }
            return CUDA_SUCCESS;
        });
    });
}

API cuGraphExecDestroy(void* executable) {
    return with_device([&](Device& device) {
        const auto found = find(executables, executable);
        if (found == nullptr) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        device.memory.release(found->memory);
        device.memory.release(found->rest);
        executables.erase(executable);
        return CUDA_SUCCESS;
    });
}

API cuGraphDestroy(void* graph) {
    return with_device([&](Device&) {
        return graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

API cuEventCreate(void** handle, unsigned flags) {
    return with_device([&](Device& device) {
        auto event = std::make_shared<Event>();
        event->device = &device;
        event->timed = !(flags & CU_EVENT_DISABLE_TIMING);
        keep(events, std::move(event), handle);
        return CUDA_SUCCESS;
    });
}

API cuEventDestroy_v2(void* handle) {
    return with_device([&](Device&) {
        return events.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

API cuEventRecord(void* handle, void* stream) {
    return with_event(handle, [&](Device& device, const std::shared_ptr<Event>& event) {
        const auto found = find_stream(device, stream);
        return found == nullptr ? CUDA_ERROR_INVALID_HANDLE : record(event, found);
    });
}

API cuEventRecordWithFlags(void* handle, void* stream, unsigned) {
    return cuEventRecord(handle, stream);
}

// Each question brings the event's stream one operation further.
API cuEventQuery(void* handle) {
    return with_event(handle, [](Device& device, const std::shared_ptr<Event>& event) {
        if (event->captured) {
            return CUDA_ERROR_CAPTURED_EVENT;
        }
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        if (event->is_done()) {
            return CUDA_SUCCESS;
        }
        advance(*event->stream);
        const CUresult result = refusal(device);
        return result == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : result;
    });
}

API cuEventSynchronize(void* handle) {
    return with_event(handle, [](Device& device, const std::shared_ptr<Event>& event) {
        if (event->captured) {
            return CUDA_ERROR_CAPTURED_EVENT;
        }
        if (const CUresult refused = refuse_in_capture(); refused != CUDA_SUCCESS) {
            return refused;
        }
        return event->is_done() ? refusal(device) : drain(*event->stream, event->number);
    });
}

API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return with_event(start, [&](Device&, const std::shared_ptr<Event>& start) {
        const auto last = find(events, end);
        if (last == nullptr || !start->timed || !last->timed || start->recorded == 0 ||
            last->recorded == 0) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        if (!start->is_done() || !last->is_done()) {
            return CUDA_ERROR_NOT_READY;
        }
        *milliseconds =
            std::chrono::duration<float, std::milli>(last->time - start->time).count();
        return CUDA_SUCCESS;
    });
}

API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
