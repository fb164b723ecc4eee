// Streams, events and graphs. See `stream.h`.
#include "stream.h"

#include <algorithm>
#include <map>

namespace umbel_emulated {
namespace {

uint64_t last_number = 0;

struct Streams {
    std::shared_ptr<Stream> by_default;
    std::map<const void*, std::shared_ptr<Stream>> created;
};

// Never destroyed, as all that a thread may still use while the process ends.
Streams& streams_of(const Device& device) {
    static auto& all = *new std::map<int, Streams>;
    return all[device.ordinal];
}

std::vector<std::shared_ptr<Stream>> all_streams(Device& device) {
    std::vector<std::shared_ptr<Stream>> all{find_stream(device, nullptr)};
    for (const auto& [_, stream] : streams_of(device).created) {
        all.push_back(stream);
    }
    return all;
}

bool is_default(const Stream& stream) {
    return &stream == streams_of(*stream.device).by_default.get();
}

CUresult give_up(Device& device, CUresult why) {
    if (device.error == CUDA_SUCCESS) {
        device.error = why;
    }
    for (const auto& stream : all_streams(device)) {
        stream->queue.clear();
    }
    return refusal(device);
}

// What was put on the default stream before `number` comes before it on the others, and the other
// way round.
void run_what_comes_first(Stream& stream, uint64_t number) {
    if (stream.independent) {
        return;
    }
    if (!is_default(stream)) {
        drain(*find_stream(*stream.device, nullptr), number);
        return;
    }
    for (const auto& other : all_streams(*stream.device)) {
        if (!other->independent && other.get() != &stream) {
            drain(*other, number);
        }
    }
}

}  // namespace

std::shared_ptr<Stream> find_stream(Device& device, const void* handle) {
    Streams& streams = streams_of(device);
    const auto value = reinterpret_cast<uintptr_t>(handle);
    if (value == 0 || value == CU_STREAM_LEGACY || value == CU_STREAM_PER_THREAD) {
        if (!streams.by_default) {
            streams.by_default = std::make_shared<Stream>(Stream{&device, false, {}, {}});
        }
        return streams.by_default;
    }
    const auto found = streams.created.find(handle);
    return found == streams.created.end() ? nullptr : found->second;
}

Stream* create_stream(Device& device, bool independent) {
    auto stream = std::make_shared<Stream>(Stream{&device, independent, {}, {}});
    Stream* handle = stream.get();
    streams_of(device).created[handle] = std::move(stream);
    return handle;
}

bool destroy_stream(Device& device, const void* handle) {
    auto& created = streams_of(device).created;
    const auto found = created.find(handle);
    if (found == created.end()) {
        return false;
    }
    // Its work still gets done, as on a device.
    const auto stream = found->second;
    drain(*stream);
    created.erase(handle);
    return true;
}

CUresult enqueue(Stream& stream, Work work) {
    if (stream.capture) {
        if (stream.capture->invalidated) {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        stream.capture->graph.nodes.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    stream.queue.push_back({++last_number, std::move(work)});
    return CUDA_SUCCESS;
}

CUresult drain(Stream& stream, uint64_t number) {
    while (!stream.queue.empty() && stream.queue.front().number <= number) {
        advance(stream);
    }
    return refusal(*stream.device);
}

bool advance(Stream& stream) {
    if (stream.queue.empty()) {
        return false;
    }
    const Operation next = std::move(stream.queue.front());
    stream.queue.pop_front();
    run_what_comes_first(stream, next.number);
    Device& device = *stream.device;
    CUresult result = refusal(device);
    if (result == CUDA_SUCCESS) {
        result = next.work();
    }
    if (result != CUDA_SUCCESS) {
        give_up(device, result);
    }
    return true;
}

CUresult drain_all(Device& device) {
    for (const auto& stream : all_streams(device)) {
        drain(*stream);
    }
    return refusal(device);
}

CUresult drain_dependent(Device& device) {
    for (const auto& stream : all_streams(device)) {
        if (!stream->independent) {
            drain(*stream);
        }
    }
    return refusal(device);
}

void forget_streams(Device& device) { streams_of(device) = {}; }

CUresult refuse_in_capture() {
    CUresult result = CUDA_SUCCESS;
    for (int ordinal = 0; Device* device = device_at(ordinal); ordinal++) {
        for (const auto& stream : all_streams(*device)) {
            auto& capture = stream->capture;
            if (!capture || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) {
                continue;
            }
            if (capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
                pthread_equal(capture->thread, pthread_self())) {
                capture->invalidated = true;
                result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
            }
        }
    }
    return result;
}

CUresult record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream) {
    event->stream = stream;
    event->captured = stream->capture.has_value();
    if (event->captured) {
        return enqueue(*stream, [] { return CUDA_SUCCESS; });
    }
    const uint64_t count = ++event->recorded;
    const CUresult result = enqueue(*stream, [event, count] {
        event->reached = count;
        event->time = std::chrono::steady_clock::now();
        return CUDA_SUCCESS;
    });
    event->number = last_number;
    return result;
}

CUresult wait_for_event(Stream& stream, const std::shared_ptr<Event>& event) {
    if (event->captured || stream.capture) {
        // One stream may wait for itself in a capture. Captures that spread are not emulated.
        if (event->captured && stream.capture && event->stream.get() == &stream) {
            return CUDA_SUCCESS;
        }
        if (stream.capture) {
            stream.capture->invalidated = true;
        }
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->recorded == 0) {
        return CUDA_SUCCESS;
    }
    return enqueue(stream, [other = event->stream, number = event->number] {
        return drain(*other, number);
    });
}

}  // namespace umbel_emulated
