// The driver's interface: modules, functions, launches, occupancy.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "driver.h"
#include "kernels.h"
#include "stream.h"

using namespace umbel_emulated;

namespace {

struct Function {
    const Kernel* kernel;
    // What `cuFuncSetAttribute` has allowed.
    int dynamic_shared_bytes = SHARED_BYTES_DEFAULT;
};

struct Module {
    // The kernels of its image. Null where that is no text: then all of the library.
    std::optional<std::set<std::string>> entries;
    std::map<std::string, Function> functions;
};

uint64_t asked = 0;

// Whether a launch is one of those for which memory is out.
bool is_refused() {
    const uint64_t every = settings().refuse_every;
    return every != 0 && ++asked % every == 0;
}

// Never destroyed, as all that a thread may still use while the process ends.
auto& modules = *new std::map<const void*, std::unique_ptr<Module>>;

bool is_function(const Function* handle) {
    for (const auto& [_, module] : modules) {
        for (const auto& [_, function] : module->functions) {
            if (&function == handle) {
                return true;
            }
        }
    }
    return false;
}

template <typename Body>
CUresult with_function(Function* handle, Body body) {
    return with_device([&](Device& device) {
        return is_function(handle) ? body(device, *handle) : CUDA_ERROR_INVALID_HANDLE;
    });
}

// The newest version of PTX that a driver reads, as ten times the major plus the minor number.
unsigned ptx_version_max() {
    const unsigned major = settings().driver_version / 1000;
    const unsigned minor = settings().driver_version % 1000 / 10;
    // CUDA 11.x has PTX 7.x, 12.x has 8.x, but one version serves both 12.5 and 12.6.
    const unsigned behind = major == 12 && minor >= 6 ? 1 : 0;
    return 10 * (major - 4) + minor - behind;
}

// Whether a driver and a device of these versions take the text. Its code is not read: the kernels
// of this library run in its place.
CUresult judge_ptx(const char* text) {
    unsigned major, minor, capability;
    const char* version = std::strstr(text, ".version");
    const char* target = std::strstr(text, ".target");
    if (version == nullptr || target == nullptr ||
        std::sscanf(version, ".version %u.%u", &major, &minor) != 2 ||
        std::sscanf(target, ".target sm_%u", &capability) != 1) {
        return CUDA_ERROR_INVALID_IMAGE;
    }
    if (10 * major + minor > ptx_version_max()) {
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    }
    return capability > settings().capability ? CUDA_ERROR_INVALID_PTX : CUDA_SUCCESS;
}

std::set<std::string> entries_of_ptx(const char* text) {
    constexpr const char* NAME =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$%";
    std::set<std::string> entries;
    for (text = std::strstr(text, ".entry"); text; text = std::strstr(text, ".entry")) {
        text += std::strlen(".entry");
        text += std::strspn(text, " \t\n");
        entries.insert(std::string(text, std::strspn(text, NAME)));
    }
    return entries;
}

bool is_text(const char* image) {
    return image[0] == '/' || image[0] == '.' || image[0] == '\n';
}

CUresult judge_image(const char* image) {
    if (image == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (const char* magic : {"\x7f" "ELF", "\x50\xed\x55\xba", "\xb1\x43\x62\x46"}) {
        if (std::strncmp(image, magic, 4) == 0) {
            return CUDA_SUCCESS;
        }
    }
    // For tests that have no compiled kernels at hand.
    if (std::strcmp(image, "emulated") == 0) {
        return CUDA_SUCCESS;
    }
    return is_text(image) ? judge_ptx(image) : CUDA_ERROR_INVALID_IMAGE;
}

bool is_within(const dim3& size, const dim3& limit) {
    return size.x >= 1 && size.x <= limit.x && size.y >= 1 && size.y <= limit.y && size.z >= 1 &&
           size.z <= limit.z;
}

int blocks_per_multiprocessor(const Function& function, int threads, size_t shared_bytes) {
    constexpr int THREADS = 1536, BLOCKS = 16;
    if (threads < 1 || threads > static_cast<int>(function.kernel->threads_max) ||
        shared_bytes > static_cast<size_t>(shared_bytes_optin())) {
        return 0;
    }
    const int warps = (threads + 31) / 32;
    const int by_shared = shared_bytes_multiprocessor() / (shared_bytes + SHARED_BYTES_RESERVED);
    return std::min({THREADS / 32 / warps, by_shared, BLOCKS});
}

}  // namespace

API cuModuleLoadData(Module** module, const char* image) {
    return with_device([&](Device&) {
        const CUresult result = judge_image(image);
        if (result == CUDA_SUCCESS) {
            auto loaded = std::make_unique<Module>();
            if (is_text(image)) {
                loaded->entries = entries_of_ptx(image);
            }
            *module = loaded.get();
            modules[loaded.get()] = std::move(loaded);
        }
        return result;
    });
}

API cuModuleLoadDataEx(Module** module, const char* image, unsigned, void*, void*) {
    return cuModuleLoadData(module, image);
}

API cuModuleUnload(Module* module) {
    return with_device([&](Device& device) {
        // What was launched still runs.
        drain_all(device);
        return modules.erase(module) == 0 ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
    });
}

API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    return with_device([&](Device&) {
        if (modules.count(module) == 0) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        const Kernel* kernel = find_kernel(name);
        if (kernel == nullptr || (module->entries && !module->entries->contains(name))) {
            return CUDA_ERROR_NOT_FOUND;
        }
        *function = &module->functions.try_emplace(name, Function{kernel}).first->second;
        return CUDA_SUCCESS;
    });
}

API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, Module*, const char*) {
    return CUDA_ERROR_NOT_FOUND;
}

API cuFuncGetAttribute(int* value, CUfunction_attribute attribute, Function* function) {
    return with_function(function, [&](Device&, const Function& function) {
        if (attribute > CU_FUNC_ATTRIBUTE_LAST) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        // Registers and static shared memory are the compiler's for the device, and unknown here.
        *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
                     ? function.kernel->threads_max
                 : attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                     ? function.dynamic_shared_bytes
                     : 0;
        return CUDA_SUCCESS;
    });
}

API cuFuncSetAttribute(Function* function, CUfunction_attribute attribute, int value) {
    return with_function(function, [&](Device&, Function& function) {
        if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
            return CUDA_SUCCESS;
        }
        if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
            value > shared_bytes_optin()) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        function.dynamic_shared_bytes = value;
        return CUDA_SUCCESS;
    });
}

API cuFuncSetCacheConfig(Function* function, unsigned) {
    return with_function(function, [](Device&, Function&) { return CUDA_SUCCESS; });
}

API cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void* stream, void** arguments, void** extra) {
    return with_function(function, [&](Device& device, const Function& function) {
        const auto found = find_stream(device, stream);
        if (found == nullptr) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        const dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
        if (!is_within(grid, {0x7fffffff, 65535, 65535}) || !is_within(block, {1024, 1024, 64}) ||
            uint64_t{block_x} * block_y * block_z > function.kernel->threads_max ||
            static_cast<int64_t>(shared_bytes) > function.dynamic_shared_bytes) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (extra != nullptr) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        if (is_refused()) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        Launch launch{function.kernel->name, function.kernel->bind(arguments), grid, block,
                      shared_bytes};
        if (!launch.body) {
            report("kernel " + launch.kernel + " is launched with too few arguments");
            return CUDA_ERROR_INVALID_VALUE;
        }
        return enqueue(*found, [&device, launch = std::move(launch)] {
            return execute(device, launch);
        });
    });
}

// Attributes say how soon a kernel may begin; here each begins when the one before has ended.
API cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments, void** extra) {
    if (config == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return cuLaunchKernel(function, config->grid[0], config->grid[1], config->grid[2], config->block[0],
                          config->block[1], config->block[2], config->shared_bytes, config->stream,
                          arguments, extra);
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads,
                                                size_t shared_bytes) {
    return with_function(function, [&](Device&, const Function& function) {
        *blocks = blocks_per_multiprocessor(function, threads, shared_bytes);
        return CUDA_SUCCESS;
    });
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function,
                                                         int threads, size_t shared_bytes,
                                                         unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function* function, int blocks, int) {
    return with_function(function, [&](Device&, const Function&) {
        if (blocks < 1) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        const int share = shared_bytes_multiprocessor() / blocks - SHARED_BYTES_RESERVED;
        *bytes = std::clamp(share, 0, shared_bytes_optin());
        return CUDA_SUCCESS;
    });
}

API cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* threads, Function* function,
                                              size_t (*shared_of_threads)(int),
                                              size_t shared_bytes, int limit, unsigned) {
    return with_function(function, [&](Device&, const Function& function) {
        int best = 0;
        const int most = function.kernel->threads_max;
        for (int count = 32; count <= most && (limit <= 0 || count <= limit); count += 32) {
            const size_t bytes = shared_of_threads ? shared_of_threads(count) : shared_bytes;
            const int blocks = blocks_per_multiprocessor(function, count, bytes);
            if (blocks * count >= best) {
                best = blocks * count;
                *threads = count;
                *grid = blocks * static_cast<int>(settings().multiprocessors);
            }
        }
        return CUDA_SUCCESS;
    });
}

API cuOccupancyMaxPotentialBlockSize(int* grid, int* threads, Function* function,
                                     size_t (*shared_of_threads)(int), size_t shared_bytes,
                                     int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, threads, function, shared_of_threads,
                                                     shared_bytes, limit, 0);
}
