// The emulator's own test: opens the library by its path, as a program that uses the driver does,
// and runs the tests named on the command line, each in a context of its own.
#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

namespace {

void* library;

// A function of the driver by its name; the types of the arguments must be those of its interface.
template <typename... Arguments>
CUresult call(const char* name, Arguments... arguments) {
    using Function = CUresult (*)(Arguments...);
    const auto function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
        std::fprintf(stderr, "no function %s\n", name);
        std::exit(1);
    }
    return function(arguments...);
}

std::string report() {
    using Function = const char* (*)();
    return reinterpret_cast<Function>(dlsym(library, "umbel_emulated_report"))();
}

std::atomic<int> failures = 0;

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            failures++;                                                          \
        }                                                                        \
    } while (false)

#define OK(expression) EXPECT((expression) == CUDA_SUCCESS)

void expect_report(const std::string& part) {
    if (report().find(part) == std::string::npos) {
        std::fprintf(stderr, "the report lacks '%s': %s\n", part.c_str(), report().c_str());
        failures++;
    }
}

class Context {
  public:
    Context() {
        OK(call("cuInit", 0u));
        OK(call("cuDevicePrimaryCtxRetain", &context, 0));
        OK(call("cuCtxSetCurrent", context));
        OK(call("cuModuleLoadData", &module, "emulated"));
        OK(call("cuStreamCreate", &stream, CU_STREAM_NON_BLOCKING));
    }
    ~Context() {
        OK(call("cuDevicePrimaryCtxRelease_v2", 0));
    }
    void* function(const char* name) const {
        void* function = nullptr;
        OK(call("cuModuleGetFunction", &function, module, name));
        return function;
    }
    template <typename... Arguments>
    CUresult launch(const char* name, unsigned grid, unsigned block, unsigned shared,
                    Arguments... arguments) const {
        void* pointers[] = {&arguments..., nullptr};
        return call("cuLaunchKernel", function(name), grid, 1u, 1u, block, 1u, 1u, shared, stream,
                    static_cast<void**>(pointers), static_cast<void**>(nullptr));
    }
    CUresult synchronize() const { return call("cuStreamSynchronize", stream); }
    CUresult run(const char* name) const { return launch(name, 1, 32, 0), synchronize(); }

    void* context = nullptr;
    void* module = nullptr;
    void* stream = nullptr;
};

template <typename T>
CUdeviceptr to_device(const std::vector<T>& values) {
    CUdeviceptr pointer = 0;
    OK(call("cuMemAlloc_v2", &pointer, values.size() * sizeof(T)));
    OK(call("cuMemcpyHtoD_v2", pointer, static_cast<const void*>(values.data()),
            values.size() * sizeof(T)));
    // Streams of the tests do not wait for the default one.
    OK(call("cuStreamSynchronize", static_cast<void*>(nullptr)));
    return pointer;
}

template <typename T>
std::vector<T> to_host(CUdeviceptr pointer, size_t count) {
    std::vector<T> values(count);
    OK(call("cuMemcpyDtoH_v2", static_cast<void*>(values.data()), pointer, count * sizeof(T)));
    return values;
}

// Numbers that are exact in bfloat16, in no order.
float small(int i) { return static_cast<float>(i * 37 % 61 - 30) / 16; }

template <typename T>
std::vector<T> numbers(int count, std::function<T(int)> number) {
    std::vector<T> all;
    for (int i = 0; i < count; i++) {
        all.push_back(number(i));
    }
    return all;
}

uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

void adds_vectors() {
    const Context context;
    const int count = 1000;
    const auto a = to_device(numbers<float>(count, small));
    const auto b = to_device(numbers<float>(count, [](int i) { return 2.0f * i; }));
    const auto sum = to_device(std::vector<float>(count));
    OK(context.launch("add", 8, 128, 0, a, b, sum, count));
    // Nothing has run yet: the copy does not wait for a stream that stands by itself.
    EXPECT(to_host<float>(sum, count)[5] == 0);
    OK(context.synchronize());
    const auto sums = to_host<float>(sum, count);
    for (int i = 0; i < count; i++) {
        EXPECT(sums[i] == small(i) + 2.0f * i);
    }
    OK(call("cuMemFree_v2", a));
    EXPECT(call("cuMemFree_v2", a) == CUDA_ERROR_INVALID_VALUE);
}

void reduces_blocks() {
    const Context context;
    const int each = 3, blocks = 4;
    const auto values = numbers<float>(256 * each * blocks, small);
    const auto from = to_device(values);
    const auto sums = to_device(std::vector<float>(blocks));
    OK(context.launch("reduce", blocks, 256, 0, from, sums, each));
    OK(context.synchronize());
    for (int block = 0; block < blocks; block++) {
        float expected = 0;
        for (int i = 0; i < 256 * each; i++) {
            expected += values[block * 256 * each + i];
        }
        EXPECT(to_host<float>(sums, blocks)[block] == expected);
    }
    // Its launch bounds are those of the source.
    EXPECT(context.launch("reduce", 1, 288, 0, from, sums, each) == CUDA_ERROR_INVALID_VALUE);
}

void serves_threads() {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back(reduces_blocks);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

// Thread 0 is the first in the usual order, and reads what the other warps have not written yet.
void shows_a_missing_barrier() {
    const Context context;
    const auto from = to_device(numbers<float>(256, small));
    const auto sums = to_device(std::vector<float>(1));
    OK(context.launch("reduce_too_early", 1, 256, 0, from, sums));
    OK(context.synchronize());
    EXPECT(std::isnan(to_host<float>(sums, 1)[0]));
}

void multiplies_matrices() {
    const Context context;
    const auto pairs = [](int rows, int from) {
        return numbers<uint32_t>(rows * 8, [=](int i) {
            return bits_of(small(from + 2 * i)) >> 16 |
                   (bits_of(small(from + 2 * i + 1)) & 0xffff0000);
        });
    };
    const auto a = to_device(pairs(16, 0));
    const auto b = to_device(pairs(8, 1000));
    const auto d = to_device(numbers<float>(128, [](int i) { return i / 7.0f; }));
    OK(context.launch("multiply", 1, 32, 0, a, b, d));
    OK(context.synchronize());
    const auto result = to_host<float>(d, 128);
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            float sum = (row * 8 + column) / 7.0f;
            for (int k = 0; k < 16; k++) {
                sum += small(row * 16 + k) * small(1000 + column * 16 + k);
            }
            EXPECT(result[row * 8 + column] == sum);
        }
    }
}

void copies_asynchronously() {
    const Context context;
    const int threads = 64, tiles = 5, count = threads * tiles * 4, valid = threads * tiles - 10;
    const auto values = numbers<uint32_t>(count, [](int i) { return i + 1; });
    const auto from = to_device(values);
    const auto to = to_device(std::vector<uint32_t>(count));
    const unsigned shared = 2 * threads * 16;
    OK(context.launch("copy", 1, threads, shared, from, to, tiles, valid));
    OK(context.synchronize());
    auto result = to_host<uint32_t>(to, count);
    for (int i = 0; i < count; i++) {
        const int tile = i / 4 / threads, source = (i / 4 + 1) % threads + tile * threads;
        EXPECT(result[i] == (source < valid ? values[source * 4 + i % 4] : 0));
    }
    OK(context.launch("copy_without_wait", 1, threads, shared, from, to, tiles, valid));
    OK(context.synchronize());
    result = to_host<uint32_t>(to, count);
    EXPECT(result[0] == 0xffffffff);
    OK(context.launch("copy_misaligned", 1, 32, 1024, from));
    EXPECT(context.synchronize() == CUDA_ERROR_MISALIGNED_ADDRESS);
    expect_report("no multiple of 16");
}

void shuffles() {
    const Context context;
    const auto out = to_device(std::vector<int>(192));
    OK(context.launch("shuffles", 1, 32, 0, out));
    OK(context.synchronize());
    const auto result = to_host<int>(out, 192);
    for (int lane = 0; lane < 32; lane++) {
        EXPECT(result[lane] == 50);
        EXPECT(result[32 + lane] == (lane < 31 ? lane + 1 : 31));
        EXPECT(result[64 + lane] == (lane < 2 ? lane : lane - 2));
        EXPECT(result[96 + lane] == 0x49249249);
        EXPECT(result[128 + lane] == (lane < 16 ? lane ^ 1 : lane ^ 2));
        EXPECT(result[160 + lane] == 1);
    }
}

void converts_numbers() {
    const Context context;
    const int count = 1 << 16;
    // Every 65536th pattern of bits, shifted a little from one to the next.
    const auto values = numbers<float>(count, [](int i) {
        const uint32_t bits = static_cast<uint32_t>(i) * 65536 + (i % 5) * 0x2000 + i % 3 + 0x7ffe;
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    });
    const auto bits = to_device(std::vector<uint32_t>(4 * count));
    OK(context.launch("convert", count / 256, 256, 0, to_device(values), bits, count));
    OK(context.synchronize());
    const auto result = to_host<uint32_t>(bits, 4 * count);
    const auto value_of_bf16 = [](uint32_t bits) {
        const uint32_t wide = bits << 16;
        float x;
        std::memcpy(&x, &wide, sizeof x);
        return x;
    };
    for (int i = 0; i < count; i++) {
        const float x = values[i];
        const float bf16 = value_of_bf16(result[4 * i] & 0xffff);
        if (std::isnan(x)) {
            EXPECT(result[4 * i] == 0x7fff7fff && result[4 * i + 1] == 0x7fff);
            continue;
        }
        // Nearer than both neighbours, and even where it is as near.
        const float below = value_of_bf16((result[4 * i] & 0x7fff) - 1);
        const float above = value_of_bf16((result[4 * i] & 0x7fff) + 1);
        const double off = std::abs(std::abs(double{x}) - std::abs(double{bf16}));
        const bool is_odd = result[4 * i] & 1;
        EXPECT(std::isinf(bf16) || (result[4 * i] & 0x7fff) == 0 ||
               ((is_odd ? off < std::abs(std::abs(double{x}) - below)
                        : off <= std::abs(std::abs(double{x}) - below)) &&
                (is_odd ? off < std::abs(above - std::abs(double{x}))
                        : off <= std::abs(above - std::abs(double{x})))));
        EXPECT((result[4 * i] >> 16) == ((result[4 * i] & 0xffff) ^ 0x8000));
        // binary16 and back is the nearest of them all: its neighbours are not nearer.
        const auto of_f16 = [&](uint32_t bits) {
            float y;
            std::memcpy(&y, &result[4 * bits + 2], sizeof y);
            return y;
        };
        const uint32_t f16 = result[4 * i + 1] & 0x7fff;
        if (f16 > 0 && f16 < 0x7bff) {
            const float size = std::abs(x);
            EXPECT(std::abs(of_f16(f16) - size) <= std::abs(of_f16(f16 + 1) - size));
            EXPECT(std::abs(of_f16(f16) - size) <= std::abs(of_f16(f16 - 1) - size));
        } else if (f16 == 0x7c00) {
            EXPECT(std::abs(x) >= 65520);
        }
    }
    EXPECT(result[4 * 0x3c00 + 2] == bits_of(1.0f));
    EXPECT(result[4 * 0x0001 + 2] == bits_of(0x1p-24f));
    EXPECT(result[4 * 0x7bff + 2] == bits_of(65504.0f));
}

void runs_graphs() {
    const Context context;
    const int count = 64;
    auto* pinned = static_cast<float*>(nullptr);
    OK(call("cuMemHostAlloc", &pinned, count * sizeof(float), 0u));
    const auto ones = numbers<float>(count, [](int) { return 1.0f; });
    const auto a = to_device(ones), b = to_device(ones), sum = to_device(ones);
    void *graph, *executable;
    CUstreamCaptureStatus status;
    OK(call("cuStreamBeginCapture_v2", context.stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(call("cuMemcpyHtoDAsync_v2", a, pinned, count * sizeof(float), context.stream));
    OK(context.launch("add", 1, 64, 0, a, b, sum, count));
    // Each run adds once more.
    OK(call("cuMemcpyDtoDAsync_v2", b, sum, count * sizeof(float), context.stream));
    OK(call("cuStreamIsCapturing", context.stream, &status));
    EXPECT(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(call("cuStreamEndCapture", context.stream, &graph));
    OK(call("cuGraphInstantiateWithFlags", &executable, graph, 0ull));
    OK(call("cuGraphDestroy", graph));
    OK(context.synchronize());
    EXPECT(to_host<float>(sum, count)[7] == 1);
    pinned[7] = 10;
    OK(call("cuGraphLaunch", executable, context.stream));
    OK(context.synchronize());
    EXPECT(to_host<float>(sum, count)[7] == 11);
    pinned[7] = 100;
    OK(call("cuGraphLaunch", executable, context.stream));
    OK(context.synchronize());
    EXPECT(to_host<float>(b, count)[7] == 111);
    OK(call("cuGraphExecDestroy", executable));

    OK(call("cuStreamBeginCapture_v2", context.stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    EXPECT(context.synchronize() == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT(call("cuStreamEndCapture", context.stream, &graph) ==
           CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    OK(call("cuMemFreeHost", pinned));
}

void records_events() {
    const Context context;
    void *start, *end, *other;
    OK(call("cuStreamCreate", &other, CU_STREAM_NON_BLOCKING));
    OK(call("cuEventCreate", &start, 0u));
    OK(call("cuEventCreate", &end, 0u));
    const auto a = to_device(std::vector<float>{1}), sum = to_device(std::vector<float>{0});
    OK(call("cuEventRecord", start, context.stream));
    OK(context.launch("add", 1, 32, 0, a, a, sum, 1));
    OK(call("cuEventRecord", end, context.stream));
    float milliseconds = -1;
    EXPECT(call("cuEventElapsedTime", &milliseconds, start, end) == CUDA_ERROR_NOT_READY);
    EXPECT(call("cuEventQuery", end) == CUDA_ERROR_NOT_READY);
    // What waits for the event has what came before it.
    OK(call("cuStreamWaitEvent", other, end, 0u));
    OK(call("cuStreamSynchronize", other));
    EXPECT(to_host<float>(sum, 1)[0] == 2);
    OK(call("cuEventQuery", end));
    OK(call("cuEventSynchronize", end));
    OK(call("cuEventElapsedTime", &milliseconds, start, end));
    EXPECT(milliseconds >= 0);
    OK(call("cuEventDestroy_v2", start));
    EXPECT(call("cuEventRecord", start, other) == CUDA_ERROR_INVALID_HANDLE);
}

// A launch that fails, what the report says, and that the error stays until the context is gone.
void expect_fault(CUresult result, const std::string& words,
                  const std::function<CUresult(const Context&)>& launch) {
    const Context context;
    EXPECT(launch(context) == result);
    expect_report(words);
    CUdeviceptr pointer;
    EXPECT(call("cuMemAlloc_v2", &pointer, size_t{4}) == result);
    EXPECT(context.synchronize() == result);
}

void reports_faults() {
    const auto writes = [](int index) {
        return [=](const Context& context) {
            const auto to = to_device(std::vector<float>(100));
            context.launch("write", 2, 32, 0, to, index);
            return context.synchronize();
        };
    };
    const auto with_index = [](const char* kernel, int index) {
        return [=](const Context& context) {
            const auto to = to_device(std::vector<float>(100));
            context.launch(kernel, 1, 32, 64, to, index);
            return context.synchronize();
        };
    };
    const auto runs = [](const char* kernel) {
        return [=](const Context& context) { return context.run(kernel); };
    };
    expect_fault(CUDA_ERROR_LAUNCH_FAILED, "(3, 0, 0) has ended", runs("barrier_for_some"));
    expect_fault(CUDA_ERROR_LAUNCH_FAILED, "in another place", runs("barriers_apart"));
    expect_fault(CUDA_ERROR_LAUNCH_FAILED, "waits for ever in __shfl_xor_sync",
                 with_index("shuffle_for_some", 0));
    // Right behind, before, a page behind, and nowhere.
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "past the end", writes(100));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "before an allocation", writes(-1));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS,
                 "kernel write, block (1, 0, 0), thread (2, 0, 0)", writes(600));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "in no allocation", writes(1 << 30));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "dynamic shared memory",
                 with_index("write_shared", 16));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "dynamic shared memory",
                 with_index("write_shared", 1 << 10));
    expect_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "index beyond its array",
                 with_index("index_array", 4));
    expect_fault(CUDA_ERROR_MISALIGNED_ADDRESS, "kernels.cu", [](const Context& context) {
        const auto from = to_device(std::vector<float>(100));
        context.launch("read_vector", 1, 32, 0, from, from);
        return context.synchronize();
    });
    // And after all that a context that works.
    adds_vectors();
}

void refuses_calls() {
    const Context context;
    void* function = nullptr;
    EXPECT(call("cuModuleGetFunction", &function, context.module, "nothing") ==
           CUDA_ERROR_NOT_FOUND);
    const auto to = to_device(std::vector<float>(100));
    // More dynamic shared memory than the default has to be asked for.
    EXPECT(context.launch("write_shared", 1, 32, 50'000, to, 0) == CUDA_ERROR_INVALID_VALUE);
    function = context.function("write_shared");
    OK(call("cuFuncSetAttribute", function, 8, 50'000));
    OK(context.launch("write_shared", 1, 32, 50'000, to, 12'499));
    OK(context.synchronize());
    EXPECT(call("cuFuncSetAttribute", function, 8, 100 << 10) == CUDA_ERROR_INVALID_VALUE);
    EXPECT(context.launch("write_shared", 1, 1025, 0, to, 0) == CUDA_ERROR_INVALID_VALUE);
    EXPECT(context.launch("write_shared", 0, 32, 0, to, 0) == CUDA_ERROR_INVALID_VALUE);
    char byte = 0;
    EXPECT(call("cuMemcpyHtoD_v2", to + 400, static_cast<const void*>(&byte), size_t{1}) ==
           CUDA_ERROR_INVALID_VALUE);
    void* module;
    EXPECT(call("cuModuleLoadData", &module, "rubbish") == CUDA_ERROR_INVALID_IMAGE);
    OK(call("cuModuleLoadData", &module,
            "//\n.version 8.4\n.target sm_80\n.visible .entry add(\n.param .u64 add_param_0)\n"));
    OK(call("cuModuleGetFunction", &function, module, "add"));
    EXPECT(call("cuModuleGetFunction", &function, module, "write") == CUDA_ERROR_NOT_FOUND);
    // Two arguments are missing: the pointer after the last one is null.
    EXPECT(context.launch("add", 1, 32, 0, to, to) == CUDA_ERROR_INVALID_VALUE);
    OK(call("cuModuleUnload", module));
    EXPECT(call("cuModuleLoadData", &module, "//\n.version 8.4\n.target sm_90\n") ==
           CUDA_ERROR_INVALID_PTX);
    EXPECT(call("cuModuleLoadData", &module, "//\n.version 8.5\n.target sm_80\n") ==
           CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    const char* name = nullptr;
    OK(call("cuGetErrorName", CUDA_ERROR_ILLEGAL_ADDRESS, &name));
    EXPECT(std::string(name) == "CUDA_ERROR_ILLEGAL_ADDRESS");
}

// Below, what `check.sh` asks for with variables of the environment.

void has_no_device() { EXPECT(call("cuInit", 0u) == CUDA_ERROR_NO_DEVICE); }

void has_an_old_driver() {
    int version = 0;
    OK(call("cuDriverGetVersion", &version));
    EXPECT(version == 11040);
}

void has_a_megabyte() {
    const Context context;
    size_t free = 0, total = 0;
    CUdeviceptr first = 0, second = 0;
    OK(call("cuMemGetInfo_v2", &free, &total));
    EXPECT(free == 1 << 20 && total == 1 << 20);
    OK(call("cuMemAlloc_v2", &first, size_t{1 << 19}));
    EXPECT(call("cuMemAlloc_v2", &second, size_t{(1 << 19) + 1}) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(call("cuMemAlloc_v2", &second, size_t{1 << 19}));
    OK(call("cuMemGetInfo_v2", &free, &total));
    EXPECT(free == 0);
    OK(call("cuMemFree_v2", first));
    OK(call("cuMemAlloc_v2", &first, size_t{1 << 10}));
}

void refuses_the_third_allocation() {
    const Context context;
    CUdeviceptr pointer;
    OK(call("cuMemAlloc_v2", &pointer, size_t{4}));
    OK(call("cuMemAlloc_v2", &pointer, size_t{4}));
    EXPECT(call("cuMemAlloc_v2", &pointer, size_t{4}) == CUDA_ERROR_OUT_OF_MEMORY);
}

void is_lost_after_two_launches() {
    const Context context;
    const auto to = to_device(std::vector<float>(100));
    for (int i = 0; i < 3; i++) {
        OK(context.launch("write", 1, 32, 0, to, 0));
    }
    EXPECT(context.synchronize() == CUDA_ERROR_ECC_UNCORRECTABLE);
    CUdeviceptr pointer;
    EXPECT(call("cuMemAlloc_v2", &pointer, size_t{4}) == CUDA_ERROR_ECC_UNCORRECTABLE);
    EXPECT(call("cuCtxSynchronize") == CUDA_ERROR_ECC_UNCORRECTABLE);
}

const std::map<std::string, void (*)()> TESTS = {
    {"adds_vectors", adds_vectors},
    {"reduces_blocks", reduces_blocks},
    {"serves_threads", serves_threads},
    {"shows_a_missing_barrier", shows_a_missing_barrier},
    {"multiplies_matrices", multiplies_matrices},
    {"copies_asynchronously", copies_asynchronously},
    {"shuffles", shuffles},
    {"converts_numbers", converts_numbers},
    {"runs_graphs", runs_graphs},
    {"records_events", records_events},
    {"reports_faults", reports_faults},
    {"refuses_calls", refuses_calls},
    {"has_no_device", has_no_device},
    {"has_an_old_driver", has_an_old_driver},
    {"has_a_megabyte", has_a_megabyte},
    {"refuses_the_third_allocation", refuses_the_third_allocation},
    {"is_lost_after_two_launches", is_lost_after_two_launches},
};

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: check LIBRARY TEST...\n");
        return 2;
    }
    library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    for (int i = 2; i < count; i++) {
        const auto test = TESTS.find(arguments[i]);
        if (test == TESTS.end()) {
            std::fprintf(stderr, "no test %s\n", arguments[i]);
            return 2;
        }
        const int before = failures;
        test->second();
        std::printf("%s %s\n", failures == before ? "ok" : "FAILED", arguments[i]);
    }
    return failures == 0 ? 0 : 1;
}
