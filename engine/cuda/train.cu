// Gradients of a block. Everything is rows [tokens, columns] in binary32, one sequence after the other;
// each output is one sum in one order, by one thread or one warp, so that nothing depends on what shares
// the pass. They are here to be right: matrices are read once for 8 tokens.

#include "cache.cuh"
#include "values.cuh"

constexpr int TOKENS_TOGETHER = 8;

// Values of a head that a lane has: of heads of up to 256.
constexpr int LANE_VALUES = 8;

// Rows become activations of the next matrix, rounded to bfloat16: a thread makes a word of two columns of
// the token blockIdx.y. Columns beyond the end are zeros.
extern "C" __global__ void pack_rows(const float* rows, int columns, Activations output) {
    grid_wait();
    const int token = blockIdx.y, column = (blockIdx.x * blockDim.x + threadIdx.x) * 2;
    if (column < output.cells * CELL_COLUMNS) {
        const float* row = rows + static_cast<size_t>(token) * columns;
        const float first = column < columns ? row[column] : 0.0f;
        const float second = column + 1 < columns ? row[column + 1] : 0.0f;
        output.word(token, column) = bf16x2_of(first, second);
    }
}

// Adds gradient * matrix to the output [tokens, columns]: a thread takes a column for 8 tokens, from the
// first row of the matrix to the last. Rows of the gradient are `stride` values apart.
template <class Values>
__device__ __forceinline__ void back(const Values& matrix, const float* gradient, int stride, int rows, int columns,
                                     int tokens, float* output) {
    grid_wait();
    const int column = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * TOKENS_TOGETHER;
    if (column >= columns) {
        return;
    }
    const int count = min(TOKENS_TOGETHER, tokens - first);
    const float* gradients = gradient + static_cast<size_t>(first) * stride;
    float sums[TOKENS_TOGETHER] = {};
    for (int row = 0; row < rows; ++row) {
        const float weight = matrix.at(row, column);
#pragma unroll
        for (int token = 0; token < TOKENS_TOGETHER; ++token) {
            if (token < count) {
                sums[token] = __fmaf_rn(gradients[static_cast<size_t>(token) * stride + row], weight, sums[token]);
            }
        }
    }
#pragma unroll
    for (int token = 0; token < TOKENS_TOGETHER; ++token) {
        if (token < count) {
            output[static_cast<size_t>(first + token) * columns + column] += sums[token];
        }
    }
}

extern "C" __global__ void back_f32(const float* matrix, const float* gradient, int stride, int rows, int columns,
                                    int tokens, float* output) {
    back(PlainValues{matrix, columns}, gradient, stride, rows, columns, tokens, output);
}

extern "C" __global__ void back_cells(const uint16_t* matrix, const float* gradient, int stride, int rows,
                                      int columns, int tokens, float* output) {
    const int cells = (columns + CELL_COLUMNS - 1) / CELL_COLUMNS;
    back(CellValues{matrix, cells}, gradient, stride, rows, columns, tokens, output);
}

// Adds the gradient of a norm's input to the output, both [tokens, size]: a block takes a token. With
// y = w x / r and r the root of the mean square of the n values of x, it is
// (g w - x (g w . x) / (n r^2)) / r, where g is the gradient of y.
extern "C" __global__ void norm_back(const float* input, const float* gradient, const float* weight, float eps,
                                     int size, float* output) {
    __shared__ float partial[WARP];
    grid_wait();
    const size_t start = static_cast<size_t>(blockIdx.x) * size;
    float squares = 0.0f, products = 0.0f;
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        const float x = input[start + column];
        squares = __fmaf_rn(x, x, squares);
        products = __fmaf_rn(gradient[start + column] * weight[column], x, products);
    }
    const float count = static_cast<float>(size);
    const float mean = block_sum(squares, partial) / count + eps;
    const float inverse = 1.0f / sqrtf(mean), along = block_sum(products, partial) / (count * mean);
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        const float scaled = gradient[start + column] * weight[column];
        output[start + column] += (scaled - input[start + column] * along) * inverse;
    }
}

// Heads of queries or of keys: `projected` has those of a token from `first` on, `stride` values from token
// to token, and `turned` is [tokens, heads * size]. `turns` has a cosine and a sine for each pair of a
// token. `norm` is null where heads are not normed. A warp takes a head.
struct Turning {
    float* projected;
    float* turned;
    const float2* turns;
    const float* norm;
    int stride;
    int first;
    int heads;
    int size;
    float eps;
    int unused;

    __device__ __forceinline__ int head() const { return blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP; }
    __device__ __forceinline__ float* of_projected(float* rows) const {
        return rows + static_cast<size_t>(blockIdx.x) * stride + first + head() * size;
    }
    __device__ __forceinline__ float* of_turned(float* rows) const {
        return rows + (static_cast<size_t>(blockIdx.x) * heads + head()) * size;
    }
    __device__ __forceinline__ float weight(int value) const { return norm == nullptr ? 1.0f : norm[value]; }
    __device__ __forceinline__ float2 turn(int pair) const {
        return turns[static_cast<size_t>(blockIdx.x) * (size / 2) + pair];
    }
    // The sum of squares of a head before its norm.
    __device__ __forceinline__ float squares(const float* head) const {
        float sum = 0.0f;
        for (int value = lane_id(); value < size; value += WARP) {
            sum = __fmaf_rn(head[value], head[value], sum);
        }
        return warp_sum(sum);
    }
};

extern "C" __global__ void turn_heads(Turning to) {
    grid_wait();
    if (to.head() >= to.heads) {
        return;
    }
    const float* head = to.of_projected(to.projected);
    float* turned = to.of_turned(to.turned);
    float factor = 1.0f;
    if (to.norm != nullptr) {
        factor = 1.0f / sqrtf(to.squares(head) / static_cast<float>(to.size) + to.eps);
    }
    const int pairs = to.size / 2;
    for (int pair = lane_id(); pair < pairs; pair += WARP) {
        const float x = head[pair] * factor * to.weight(pair);
        const float y = head[pair + pairs] * factor * to.weight(pair + pairs);
        const float2 turn = to.turn(pair);
        turned[pair] = x * turn.x - y * turn.y;
        turned[pair + pairs] = y * turn.x + x * turn.y;
    }
}

// From the gradient of turned heads, `of_turned`, to that of projected ones, in rows as theirs.
extern "C" __global__ void turn_heads_back(Turning to, float* of_turned, float* of_projected) {
    grid_wait();
    if (to.head() >= to.heads) {
        return;
    }
    const float* head = to.of_projected(to.projected);
    const float* gradient = to.of_turned(of_turned);
    float* output = to.of_projected(of_projected);
    const int pairs = to.size / 2;
    float products = 0.0f;
    for (int pair = lane_id(); pair < pairs; pair += WARP) {
        const float2 turn = to.turn(pair);
        const float x = gradient[pair], y = gradient[pair + pairs];
        const float of_x = (x * turn.x + y * turn.y) * to.weight(pair);
        const float of_y = (y * turn.x - x * turn.y) * to.weight(pair + pairs);
        output[pair] = of_x;
        output[pair + pairs] = of_y;
        products = __fmaf_rn(of_x, head[pair], products);
        products = __fmaf_rn(of_y, head[pair + pairs], products);
    }
    if (to.norm == nullptr) {
        return;
    }
    const float count = static_cast<float>(to.size), mean = to.squares(head) / count + to.eps;
    const float inverse = 1.0f / sqrtf(mean), along = warp_sum(products) / (count * mean);
    for (int pair = lane_id(); pair < pairs; pair += WARP) {
        output[pair] = (output[pair] - head[pair] * along) * inverse;
        output[pair + pairs] = (output[pair + pairs] - head[pair + pairs] * along) * inverse;
    }
}

// A head's values over the lanes of a warp.
struct Lanes {
    float of[LANE_VALUES];

    __device__ __forceinline__ Lanes(const float* head, int size) {
#pragma unroll
        for (int part = 0; part < LANE_VALUES; ++part) {
            const int value = part * WARP + lane_id();
            of[part] = value < size ? head[value] : 0.0f;
        }
    }
    __device__ __forceinline__ Lanes() {
#pragma unroll
        for (int part = 0; part < LANE_VALUES; ++part) {
            of[part] = 0.0f;
        }
    }
    __device__ __forceinline__ void add(float factor, const Lanes& other) {
#pragma unroll
        for (int part = 0; part < LANE_VALUES; ++part) {
            of[part] = __fmaf_rn(factor, other.of[part], of[part]);
        }
    }
    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (int part = 0; part < LANE_VALUES; ++part) {
            of[part] = __fmul_rn(factor, of[part]);
        }
    }
    __device__ __forceinline__ void store(float* head, int size) const {
#pragma unroll
        for (int part = 0; part < LANE_VALUES; ++part) {
            const int value = part * WARP + lane_id();
            if (value < size) {
                head[value] = of[part];
            }
        }
    }
};

__device__ __forceinline__ float dot(const Lanes& one, const Lanes& other) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < LANE_VALUES; ++part) {
        sum = __fmaf_rn(one.of[part], other.of[part], sum);
    }
    return warp_sum(sum);
}

// Attention over whole sequences: queries and what they see [tokens, heads * size], keys [tokens, kv_heads
// * size], values from `first` on in rows of `stride`. `bounds` has for each token the first and the end
// of its sequence, `softmax` for each token and head the maximum and the sum of its powers, and behind
// them, for the way back, the mean gradient of its weights.
struct Attended {
    const float* queries;
    const float* keys;
    const float* values;
    float* output;
    float* softmax;
    const int2* bounds;
    Shape shape;
    float scale;
    int stride;
    int first;
    int unused;

    __device__ __forceinline__ Lanes query(const float* rows, int token, int head) const {
        return {rows + (static_cast<size_t>(token) * shape.heads + head) * shape.head_size, shape.head_size};
    }
    __device__ __forceinline__ Lanes key(int token, int head) const {
        return {keys + (static_cast<size_t>(token) * shape.kv_heads + head) * shape.head_size, shape.head_size};
    }
    __device__ __forceinline__ size_t value_place(int token, int head) const {
        return static_cast<size_t>(token) * stride + first + head * shape.head_size;
    }
    __device__ __forceinline__ Lanes value(int token, int head) const {
        return {values + value_place(token, head), shape.head_size};
    }
    __device__ __forceinline__ float* of_softmax(int token, int head) const {
        return softmax + (static_cast<size_t>(token) * shape.heads + head) * 3;
    }
    __device__ __forceinline__ int kv_head(int head) const { return head / (shape.heads / shape.kv_heads); }
    // The first token that `token` sees.
    __device__ __forceinline__ int seen(int token) const {
        const int start = bounds[token].x;
        return start + shape.first_seen(token - start);
    }
    // How much a row takes of a token, of whose key and query `product` is the product.
    __device__ __forceinline__ float weight(const float* row, float product) const {
        return expf(product * scale - row[0]) / row[1];
    }
    __device__ __forceinline__ int warp() const { return blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP; }
};

// A warp takes a head of queries of the token blockIdx.x.
extern "C" __global__ void attend_rows(Attended to) {
    grid_wait();
    const int token = blockIdx.x, head = to.warp();
    if (head >= to.shape.heads) {
        return;
    }
    const Lanes query = to.query(to.queries, token, head);
    Lanes output;
    float maximum = __uint_as_float(0xff800000u), sum = 0.0f;
    for (int at = to.seen(token); at <= token; ++at) {
        const float score = dot(query, to.key(at, to.kv_head(head))) * to.scale;
        const float largest = fmaxf(maximum, score), kept = expf(maximum - largest), weight = expf(score - largest);
        maximum = largest;
        sum = __fmaf_rn(sum, kept, weight);
        output.scale(kept);
        output.add(weight, to.value(at, to.kv_head(head)));
    }
    output.scale(1.0f / sum);
    output.store(to.output + (static_cast<size_t>(token) * to.shape.heads + head) * to.shape.head_size,
                 to.shape.head_size);
    if (lane_id() == 0) {
        float* row = to.of_softmax(token, head);
        row[0] = maximum;
        row[1] = sum;
    }
}

// The gradient of queries from that of what they saw, as attend_rows. With weights p = softmax(s), the
// gradient of s is p (g . v - sum p (g . v)), and that sum is g . output.
extern "C" __global__ void attend_rows_back_queries(Attended to, const float* gradient, float* of_queries) {
    grid_wait();
    const int token = blockIdx.x, head = to.warp();
    if (head >= to.shape.heads) {
        return;
    }
    const Lanes query = to.query(to.queries, token, head), of_output = to.query(gradient, token, head);
    float* row = to.of_softmax(token, head);
    const float mean = dot(of_output, to.query(to.output, token, head));
    Lanes of_query;
    for (int at = to.seen(token); at <= token; ++at) {
        const Lanes key = to.key(at, to.kv_head(head));
        const float weight = to.weight(row, dot(query, key));
        const float of_weight = dot(of_output, to.value(at, to.kv_head(head)));
        of_query.add(weight * (of_weight - mean) * to.scale, key);
    }
    of_query.store(of_queries + (static_cast<size_t>(token) * to.shape.heads + head) * to.shape.head_size,
                   to.shape.head_size);
    if (lane_id() == 0) {
        row[2] = mean;
    }
}

// Those of keys, and of values in rows as theirs: a warp takes a head of keys of the token blockIdx.x, and
// adds up what the queries of all heads that share it took, head by head and token by token. It comes
// behind attend_rows_back_queries, which leaves the means.
extern "C" __global__ void attend_rows_back_keys(Attended to, const float* gradient, float* of_keys,
                                                 float* of_values) {
    grid_wait();
    const int token = blockIdx.x, kv_head = to.warp(), group = to.shape.heads / to.shape.kv_heads;
    if (kv_head >= to.shape.kv_heads) {
        return;
    }
    const Lanes key = to.key(token, kv_head), value = to.value(token, kv_head);
    const int window = to.shape.window, end = to.bounds[token].y;
    const int seen_until = window > 0 ? min(end, token + window) : end;
    Lanes of_key, of_value;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int at = token; at < seen_until; ++at) {
            const Lanes query = to.query(to.queries, at, head), of_output = to.query(gradient, at, head);
            const float* row = to.of_softmax(at, head);
            const float weight = to.weight(row, dot(query, key));
            const float of_weight = dot(of_output, value);
            of_key.add(weight * (of_weight - row[2]) * to.scale, query);
            of_value.add(weight, of_output);
        }
    }
    of_key.store(of_keys + (static_cast<size_t>(token) * to.shape.kv_heads + kv_head) * to.shape.head_size,
                 to.shape.head_size);
    of_value.store(of_values + to.value_place(token, kv_head), to.shape.head_size);
}

// Gates and up projections in rows [tokens, stride]: gates first, or where `tiles` is set 8 of each in
// turn.
struct GateUp {
    float* values;
    int size;
    int stride;
    int tiles;
    int unused;

    __device__ __forceinline__ size_t place(int token, int feature, int is_up) const {
        const int at = tiles ? feature / 8 * 16 + is_up * 8 + feature % 8 : is_up * size + feature;
        return static_cast<size_t>(token) * stride + at;
    }
};

// silu(gate) * up [tokens, size]: a thread takes a feature of the token blockIdx.y.
extern "C" __global__ void gate_rows(GateUp from, float* output) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < from.size) {
        const float gate = from.values[from.place(token, feature, 0)];
        const float up = from.values[from.place(token, feature, 1)];
        output[static_cast<size_t>(token) * from.size + feature] = gate / (1.0f + expf(-gate)) * up;
    }
}

// From the gradient of what gate_rows gives to those of gates and up projections, which take their place.
extern "C" __global__ void gate_rows_back(GateUp from, const float* gradient) {
    grid_wait();
    const int token = blockIdx.y, feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < from.size) {
        float& gate = from.values[from.place(token, feature, 0)];
        float& up = from.values[from.place(token, feature, 1)];
        const float of_gated = gradient[static_cast<size_t>(token) * from.size + feature];
        const float logistic = 1.0f / (1.0f + expf(-gate)), of_up = of_gated * (gate * logistic);
        gate = of_gated * up * (logistic * (1.0f + gate * (1.0f - logistic)));
        up = of_up;
    }
}
