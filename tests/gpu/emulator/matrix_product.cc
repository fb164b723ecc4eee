// The product of two small matrices whose parts the lanes of a warp hold.
#include "emulator.h"

namespace umbel_emulated {

// Lane 4g + t holds of A the rows g and g + 8, columns 2t, 2t + 1 and those 8 further, of B the
// same rows as A's columns in column g, and of the result rows g and g + 8, columns 2t and 2t + 1.
void multiply_matrices(void* const (&data)[32], uint32_t) {
    // A row of the result at once: each place of it is one sum, from the first product to the last.
    using Row = float __attribute__((vector_size(32)));
    float a[16][16];
    Row b[16], d[16];
    const auto low = [](uint32_t pair) { return float_of_bf16(pair & 0xffff); };
    const auto high = [](uint32_t pair) { return float_of_bf16(pair >> 16); };
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<const MatrixProduct*>(data[lane]);
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; i++) {
            const int row = g + 8 * (i % 2), column = t + 8 * (i / 2);
            a[row][column] = low(mine.a[i]);
            a[row][column + 1] = high(mine.a[i]);
            d[g + 8 * (i / 2)][t + i % 2] = mine.d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + 8 * i][g] = low(mine.b[i]);
            b[t + 8 * i + 1][g] = high(mine.b[i]);
        }
    }
    for (int row = 0; row < 16; row++) {
        Row sums = d[row];
        for (int k = 0; k < 16; k++) {
            sums += a[row][k] * b[k];
        }
        d[row] = sums;
    }
    for (int lane = 0; lane < 32; lane++) {
        auto& mine = *static_cast<MatrixProduct*>(data[lane]);
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; i++) {
            mine.d[i] = d[g + 8 * (i / 2)][t + i % 2];
        }
    }
}

}  // namespace umbel_emulated
