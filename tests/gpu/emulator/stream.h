// Streams, events and graphs. Work that is put on a stream stays there until something waits for
// it, as late as a device could run it: who forgets to synchronize sees the old bytes, each time.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <pthread.h>
#include <vector>

#include "device.h"

namespace umbel_emulated {

using Work = std::function<CUresult()>;

struct Operation {
    // Where it stands among all operations of the device.
    uint64_t number;
    Work work;
};

struct Graph {
    std::vector<Work> nodes;
};

// A graph under construction: what was put on a stream since `cuStreamBeginCapture`.
struct Capture {
    CUstreamCaptureMode mode;
    pthread_t thread;
    bool invalidated = false;
    Graph graph;
};

struct Stream {
    Device* device;
    // Whether it neither waits for the default stream nor the default stream for it.
    bool independent;
    std::deque<Operation> queue;
    std::optional<Capture> capture;
};

struct Event {
    Device* device;
    bool timed;
    // The stream on which it was recorded last, and how often it was recorded and reached.
    std::shared_ptr<Stream> stream;
    uint64_t number = 0;
    uint64_t recorded = 0;
    uint64_t reached = 0;
    bool captured = false;
    std::chrono::steady_clock::time_point time;

    bool is_done() const { return recorded == reached; }
};

// The stream of a handle, or null where there is none. A null handle is the default stream.
std::shared_ptr<Stream> find_stream(Device& device, const void* handle);
Stream* create_stream(Device& device, bool independent);
bool destroy_stream(Device& device, const void* handle);

// Puts work at the end of a stream, or into the graph that it captures.
CUresult enqueue(Stream& stream, Work work);

// Runs what was put on a stream, up to and with the given number. The first error stays with the
// device, and nothing runs any more.
CUresult drain(Stream& stream, uint64_t number = UINT64_MAX);
// Runs one operation; true where there was one.
bool advance(Stream& stream);
// All streams of the device, or only those for which a call without a stream waits.
CUresult drain_all(Device& device);
CUresult drain_dependent(Device& device);

// Forgets all streams of a device whose context is gone.
void forget_streams(Device& device);

// What a call that waits or allocates must answer while a stream is captured (the capture is lost
// then), or success.
CUresult refuse_in_capture();

CUresult record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream);
CUresult wait_for_event(Stream& stream, const std::shared_ptr<Event>& event);

}  // namespace umbel_emulated
