// What adapters add to the products of matrices, y += scale * B (A x), and their gradients, in binary32.
// Both of their matrices are [rank, size] here, B transposed, so that what one does to the inputs of a
// product on the way forward the other does to its gradients on the way back.
//
// Each output is one sum in one order, by one thread or one block, so that nothing depends on what shares
// the pass.

#include "cache.cuh"
#include "values.cuh"

constexpr int TOKENS_TOGETHER = 8;
constexpr int RANKS_TOGETHER = 8;

// Threads that add up a norm, and rows of a block of them.
constexpr int NORM_LANES = 8;
constexpr int NORM_ROWS = 32;

// Where the features of a module stand in rows of `stride` values: from `first` on, or where `tiles` is
// set 8 of every 16 from there on.
struct Place {
    int stride;
    int first;
    int tiles;
    int unused;

    __device__ __forceinline__ int column(int feature) const {
        return first + (tiles ? feature / 8 * CELL_ROWS + feature % 8 : feature);
    }
    __device__ __forceinline__ size_t at(int token, int feature) const {
        return static_cast<size_t>(token) * stride + column(feature);
    }
    // The feature that has a column; none of the module's where it is negative or beyond the last.
    __device__ __forceinline__ int feature(int column) const {
        if (!tiles) {
            return column - first;
        }
        return column % CELL_ROWS / 8 * 8 == first ? column / CELL_ROWS * 8 + column % 8 : -1;
    }
};

// Features of tokens in rows of binary32.
struct RowInput {
    const float* rows;
    Place place;

    __device__ __forceinline__ float at(int token, int feature) const { return rows[place.at(token, feature)]; }
};

// Features that were rounded for a matrix.
struct CellInput {
    Activations cells;

    __device__ __forceinline__ float at(int token, int feature) const {
        const uint32_t pair = cells.word(token, feature / 2 * 2);
        return __uint_as_float(feature % 2 ? pair & 0xffff0000u : pair << 16);
    }
};

// The output [tokens, rank] is the product of the input [tokens, size] with the rows of the matrix: a
// block takes a row for 8 tokens.
template <class Input>
__device__ __forceinline__ void multiply(const float* matrix, int size, int rank, const Input& input, int tokens,
                                         float* output) {
    __shared__ float partial[WARP];
    grid_wait();
    const int row = blockIdx.x, first = blockIdx.y * TOKENS_TOGETHER, count = min(TOKENS_TOGETHER, tokens - first);
    float sums[TOKENS_TOGETHER] = {};
    for (int feature = threadIdx.x; feature < size; feature += blockDim.x) {
        const float weight = matrix[static_cast<size_t>(row) * size + feature];
#pragma unroll
        for (int token = 0; token < TOKENS_TOGETHER; ++token) {
            if (token < count) {
                sums[token] = __fmaf_rn(weight, input.at(first + token, feature), sums[token]);
            }
        }
    }
#pragma unroll
    for (int token = 0; token < TOKENS_TOGETHER; ++token) {
        if (token < count) {
            const float sum = block_sum(sums[token], partial);
            if (threadIdx.x == 0) {
                output[static_cast<size_t>(first + token) * rank + row] = sum;
            }
        }
    }
}

extern "C" __global__ void adapt_inner_rows(const float* matrix, int size, int rank, const float* rows, Place place,
                                            int tokens, float* output) {
    multiply(matrix, size, rank, RowInput{rows, place}, tokens, output);
}

extern "C" __global__ void adapt_inner_cells(const float* matrix, int size, int rank, Activations input, int tokens,
                                             float* output) {
    multiply(matrix, size, rank, CellInput{input}, tokens, output);
}

// Which values are dropped, as crate::train::dropout has it: bits are SplitMix64's at a place, drawn from
// the seed of each token's sequence. Nothing is where there are no seeds.
struct Dropping {
    const uint64_t* seeds;
    // The first and the end of each token's sequence.
    const int2* bounds;
    uint64_t stream;
    double threshold;
    float kept;
    int unused;

    __device__ __forceinline__ static uint64_t mix(uint64_t value) {
        value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
        value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
        return value ^ (value >> 31);
    }
    __device__ __forceinline__ float left(int token, int feature, int size, float value) const {
        if (seeds == nullptr) {
            return value;
        }
        constexpr uint64_t GAMMA = 0x9e3779b97f4a7c15ull;
        const uint64_t index = static_cast<uint64_t>(token - bounds[token].x) * size + feature;
        const uint64_t start = mix(mix(seeds[token] + GAMMA) ^ (stream * GAMMA));
        const uint64_t bits = mix(start + (index + 1) * GAMMA) >> 40;
        return static_cast<double>(bits) < threshold ? 0.0f : __fmul_rn(value, kept);
    }
};

// What is left of rows [tokens, size], added to the output or in its place: a thread takes a feature of
// the token blockIdx.y.
extern "C" __global__ void adapt_drop(const float* rows, int size, Dropping dropping, int adds, float* output) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < size) {
        const size_t at = static_cast<size_t>(token) * size + feature;
        const float left = dropping.left(token, feature, size, rows[at]);
        output[at] = adds ? __fadd_rn(output[at], left) : left;
    }
}

// The sum of a token's inner products times a column of the matrix [rank, size].
__device__ __forceinline__ float outer(const float* matrix, int size, int rank, const float* inner, int token,
                                       int feature) {
    float sum = 0.0f;
    for (int row = 0; row < rank; ++row) {
        const float weight = matrix[static_cast<size_t>(row) * size + feature];
        sum = __fmaf_rn(inner[static_cast<size_t>(token) * rank + row], weight, sum);
    }
    return sum;
}

// Adds scale * inner * matrix to rows, or what is left of it: a thread takes a feature of the token
// blockIdx.y.
extern "C" __global__ void adapt_add(const float* matrix, int size, int rank, const float* inner, float scale,
                                     Dropping dropping, Place place, float* output) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < size) {
        const float added = __fmul_rn(scale, outer(matrix, size, rank, inner, token, feature));
        float& value = output[place.at(token, feature)];
        value = __fadd_rn(value, dropping.left(token, feature, size, added));
    }
}

// The gradient of a matrix [rank, size]: scale * the sum over tokens of inner products times rows. A
// thread takes a feature for 8 rows of it.
extern "C" __global__ void adapt_gradient(const float* inner, int rank, float scale, const float* rows, Place place,
                                          int size, int tokens, float* output) {
    grid_wait();
    const int feature = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * RANKS_TOGETHER;
    const int count = min(RANKS_TOGETHER, rank - first);
    if (feature >= size) {
        return;
    }
    float sums[RANKS_TOGETHER] = {};
    for (int token = 0; token < tokens; ++token) {
        const float value = rows[place.at(token, feature)];
        const float* factors = inner + static_cast<size_t>(token) * rank + first;
#pragma unroll
        for (int row = 0; row < RANKS_TOGETHER; ++row) {
            if (row < count) {
                sums[row] = __fmaf_rn(factors[row], value, sums[row]);
            }
        }
    }
#pragma unroll
    for (int row = 0; row < RANKS_TOGETHER; ++row) {
        if (row < count) {
            output[static_cast<size_t>(first + row) * size + feature] = __fmul_rn(scale, sums[row]);
        }
    }
}

// From [rows, columns] to [columns, rows]: a thread takes a row of the column blockIdx.y.
extern "C" __global__ void adapt_transposed(const float* from, int rows, int columns, float* to) {
    grid_wait();
    const int column = blockIdx.y, row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        to[static_cast<size_t>(column) * rows + row] = from[static_cast<size_t>(row) * columns + column];
    }
}

// Gates of features whose products were not gated at once: as ToGated of epilogue.cuh, in rows with tiles
// of 8 gates and the 8 up projections that belong to them. A thread makes a word of two features of the
// token blockIdx.y.
extern "C" __global__ void adapt_gate(const float* gate_up, int size, int stride, Activations output) {
    grid_wait();
    const int token = blockIdx.y, feature = (blockIdx.x * blockDim.x + threadIdx.x) * 2;
    if (feature >= output.cells * CELL_COLUMNS) {
        return;
    }
    const Place gates{stride, 0, 1, 0}, ups{stride, 8, 1, 0};
    float gated[2];
#pragma unroll
    for (int of = 0; of < 2; ++of) {
        const bool there = feature + of < size;
        const float gate = there ? gate_up[gates.at(token, feature + of)] : 0.0f;
        gated[of] = there ? __fmul_rn(silu(gate), gate_up[ups.at(token, feature + of)]) : 0.0f;
    }
    output.word(token, feature) = bf16x2_of(gated[0], gated[1]);
}

// Adds learned vectors [count, size] to the hidden states of the first tokens of each session.
extern "C" __global__ void adapt_prompt(float* hidden, int size, const Sequence* sequences,
                                        const int* sequence_of_row, const float* prompt, int count) {
    grid_wait();
    const int token = blockIdx.y, value = blockIdx.x * blockDim.x + threadIdx.x;
    const Sequence& sequence = sequences[sequence_of_row[token]];
    const int position = sequence.position + token - sequence.first_row;
    if (value < size && position < count) {
        float& of_token = hidden[static_cast<size_t>(token) * size + value];
        of_token = __fadd_rn(of_token, prompt[static_cast<size_t>(position) * size + value]);
    }
}

// What DoRA scales the rows of a matrix to: learned magnitudes, and the norms that the rows have with what
// is added to them.
struct Scales {
    const float* magnitudes;
    const float* norms;

    // A row of zeros has the least norm there is, so that it stays one.
    __device__ __forceinline__ float norm(int row) const { return fmaxf(norms[row], 1.17549435e-38f); }
    __device__ __forceinline__ float factor(int row) const { return magnitudes[row] / norm(row); }
};

// The norms of `count` rows of a matrix, which are a module's features from the column `start` of their
// rows on, with scale * B A added where rank is not 0. Each is a sum in binary64 in the order of
// crate::train::dora, so that it is the same number where the weights are.
template <class Values>
__device__ __forceinline__ void norms_of(const Values& matrix, int start, int count, int columns, const Place& place,
                                         int size, const float* a, const float* b, int rank, float scale,
                                         float* norms) {
    __shared__ double partial[NORM_ROWS * NORM_LANES];
    grid_wait();
    const int of_matrix = blockIdx.x * NORM_ROWS + threadIdx.x / NORM_LANES, lane = threadIdx.x % NORM_LANES;
    const int row = of_matrix < count ? place.feature(start + of_matrix) : -1;
    const bool there = row >= 0 && row < size;
    double sum = 0.0;
    for (int column = lane; there && column < columns; column += NORM_LANES) {
        float value = matrix.at(of_matrix, column);
        for (int of = 0; of < rank; ++of) {
            const float factor = __fmul_rn(scale, b[static_cast<size_t>(of) * size + row]);
            value = __fadd_rn(value, __fmul_rn(factor, a[static_cast<size_t>(of) * columns + column]));
        }
        sum += static_cast<double>(value) * static_cast<double>(value);
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (there && lane == 0) {
        double all = 0.0;
        for (int other = 0; other < NORM_LANES; ++other) {
            all += partial[threadIdx.x + other];
        }
        norms[row] = static_cast<float>(sqrt(all));
    }
}

extern "C" __global__ void adapt_norms_f32(const float* matrix, int start, int count, int columns, Place place,
                                           int size, const float* a, const float* b, int rank, float scale,
                                           float* norms) {
    norms_of(PlainValues{matrix, columns}, start, count, columns, place, size, a, b, rank, scale, norms);
}

extern "C" __global__ void adapt_norms_cells(const uint16_t* matrix, int start, int count, int columns, Place place,
                                             int size, const float* a, const float* b, int rank, float scale,
                                             float* norms) {
    const int cells = (columns + CELL_COLUMNS - 1) / CELL_COLUMNS;
    norms_of(CellValues{matrix, cells}, start, count, columns, place, size, a, b, rank, scale, norms);
}

// Rows of W x + b, where they are to be read, and of what is left of x in `base`.
struct Products {
    const float* product;
    const float* base;
    const float* bias;

    __device__ __forceinline__ float without_bias(const Place& place, int token, int feature) const {
        const float value = base[place.at(token, feature)];
        return bias == nullptr ? value : __fadd_rn(value, -bias[place.column(feature)]);
    }
};

// The scaled sum of a product and of scale * inner * matrix, as adapt_add takes them; added to the output
// or in its place.
extern "C" __global__ void adapt_scaled(const float* matrix, int size, int rank, const float* inner, float scale,
                                        Scales scales, Products products, Place place, int adds, float* output) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature >= size) {
        return;
    }
    const float added = __fmul_rn(scale, outer(matrix, size, rank, inner, token, feature));
    const float factor = scales.factor(feature), base = products.without_bias(place, token, feature);
    const size_t at = place.at(token, feature);
    const float value = products.product[at] + ((factor - 1.0f) * base + factor * added);
    output[at] = adds ? output[at] + value : value;
}

// The gradient of each magnitude: a thread takes a row.
extern "C" __global__ void adapt_of_magnitudes(const float* matrix, int size, int rank, const float* inner,
                                               float scale, Scales scales, Products products, Place place,
                                               const float* gradient, int tokens, float* output) {
    grid_wait();
    const int feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature >= size) {
        return;
    }
    float sum = 0.0f;
    for (int token = 0; token < tokens; ++token) {
        const float added = __fmul_rn(scale, outer(matrix, size, rank, inner, token, feature));
        const float base = products.without_bias(place, token, feature);
        sum = __fmaf_rn(gradient[place.at(token, feature)], base + added, sum);
    }
    output[feature] = sum / scales.norm(feature);
}

// A module's gradients times its factors, of which `less` is taken first.
extern "C" __global__ void adapt_of_sum(const float* gradient, int size, Scales scales, float less, Place place,
                                        float* output) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < size) {
        const size_t at = place.at(token, feature);
        output[at] = gradient[at] * (scales.factor(feature) - less);
    }
}
