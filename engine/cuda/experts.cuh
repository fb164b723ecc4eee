// How the tokens of a pass lie that go through experts.
//
// A pair is a token and an expert that it goes through. Pairs have rows, those of one expert one behind the
// other; where a row lies among those of its expert is of no account. Rows are multiplied in tiles, each of
// one expert.

#pragma once

#include "layout.cuh"

// Some rows of one expert. `int4` to a compiler, so that it is read at once: the expert, how many rows there
// are (0 where the tile is for nobody), the first among those of all pairs, and the first where the rows of
// each expert begin with a cell of activations.
using RowTile = int4;
__device__ __forceinline__ int expert_of(const RowTile& tile) { return tile.x; }
__device__ __forceinline__ int rows_of(const RowTile& tile) { return tile.y; }
__device__ __forceinline__ int first_of(const RowTile& tile) { return tile.z; }
__device__ __forceinline__ int padded_of(const RowTile& tile) { return tile.w; }
