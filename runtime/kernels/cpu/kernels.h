// What the engine asks of a CPU: plain views of weights and activations, and a table of functions per instruction set.
//
// Every kernel computes a range of its outputs (rows, heads, channels, tokens); who computes which range is the thread
// pool's affair and never changes a result: each output is computed by one thread in one fixed order, and a token's
// arithmetic does not depend on the tokens beside it. All activations are float32, row-major.
#pragma once

#include <cstdint>

namespace moepack {

enum class Kind : int32_t {
  affine2, affine3, affine4, affine6, affine8, bf16, f16, f32, steps2, steps3, books2, books3
};
enum class Scalar : int32_t { bf16, f16, f32 };

// A weight matrix [rows, cols] as stored. Affine kinds: `data` holds each row's codes as one little-endian bit stream,
// and scales and biases are [rows, cols / group] of type `scalar`. Float kinds: `data` is the matrix itself.
// Grid kinds: `data` holds codes too, scales are bf16 [rows], and `grids` says which grid the codes of a group pick
// their level from, in a byte per group (steps) or in four bits, low ones first (books). `levels` is
// [256][1 or 2][2^bits]: for every byte the levels of the grids that it names. `books` is [16][2^bits]: the levels of the
// codebooks plus 128.
struct Matrix {
  Kind kind;
  Scalar scalar;
  int64_t rows, cols, group, row_bytes;
  const uint8_t* data;
  const void* scales;
  const void* biases;
  const uint8_t* grids = nullptr;
  const float* levels = nullptr;
  const uint8_t* books = nullptr;
};

constexpr int64_t BLOCK = 32;            // columns that share a scale when activations are rounded
constexpr int64_t STRETCH = 16 * BLOCK;  // columns that are computed together; rounded rows are whole ones

// How the numbers of a rounded row are dealt out: as a few rows are multiplied, or as panels multiply many.
enum class Order : int32_t { chunks, lanes };

// A row of activations rounded to fifteen bits, in two bytes: an activation is about scale * (128 * high + low), with
// high from -127 to 127 and low from -64 to 63. Each block has these codes, a scale, an offset (minus the sum of its
// numbers) and three sums. With B blocks, those past the last column included, sums come last: [3][B], of groups of
// 32, 64 and 128: scale * sum. Before them lie, in chunks: high codes [32 B], low codes [32 B], scales [B], offsets
// [B], the codes dealt out to the planes of a chunk of a matrix and zero past the last column. In lanes: a packet for
// each block that has columns, at the place that packet_of says, its codes dealt out to planes by themselves.
struct Packet {
  int8_t high[BLOCK], low[BLOCK];
  float scale;
  int32_t offset;
};

constexpr int64_t stretches_of(int64_t cols) { return (cols + STRETCH - 1) / STRETCH; }
constexpr int64_t rounded_bytes(int64_t cols) {
  return stretches_of(cols) * 16 * static_cast<int64_t>(sizeof(Packet) + 3 * sizeof(float));
}

// Blocks in the order of lanes: lane l of sixteen has the blocks l, l + 16, ...; lanes in the order of their bits
// reversed, in which sums of neighbours make reduce_add's tree.
constexpr int64_t turn_of(int64_t lane) {
  return (lane & 1) << 3 | (lane & 2) << 1 | (lane & 4) >> 1 | (lane & 8) >> 3;
}
constexpr int64_t packet_of(int64_t block, int64_t stretches) { return turn_of(block % 16) * stretches + block / 16; }

// Rows of activations: row t is row index[t] of the base, or row t without an index. `rounded`, if there, is the base
// rounded for the matrix that it is multiplied with, rounded_bytes for each row: in lanes from fewest_in_panels
// rows on, else in chunks.
struct Rows {
  const float* base;
  const int32_t* index;
  int64_t count, stride;
  const uint8_t* rounded = nullptr;
  int64_t place(int64_t t) const { return index ? index[t] : t; }
  const float* operator[](int64_t t) const { return base + place(t) * stride; }
  const uint8_t* rounded_row(int64_t t) const { return rounded + place(t) * rounded_bytes(stride); }
};

// One expert: gate and up are [intermediate, hidden], down is [hidden, intermediate].
struct Expert {
  Matrix gate, up, down;
};

struct AttentionShape {
  int64_t num_heads, num_kv_heads, head_dim, rotary_dims;
  float eps;
};

// Query rows of a tile, and positions of a block; blocks lie at multiples of this, for all calls and tokens alike.
constexpr int64_t ATTENTION_ROWS = 16, ATTENTION_BLOCK = 256;

// One chunk's view of a full-attention layer. `keys` and `values` are the cache [capacity, num_kv_heads * head_dim];
// token t of the chunk sits at `position + t`; cos and sin are [tokens, rotary_dims / 2] for those positions.
// The query rows of a key head, token by token and in each token head by head, are cut into tiles; tiles are numbered
// through, key head by key head, `tiles` for each. Of a tile, arrays have a row of ATTENTION_ROWS floats for each
// dimension; a partial result has two more: [largest score | sum of exponentials | values weighted by exponentials].
struct Attention {
  AttentionShape shape;
  int64_t tokens, position, tiles;
  const float *query_gate, *key, *value;  // [tokens, num_heads * 2 * head_dim], [tokens, num_kv_heads * head_dim] twice
  const float *query_norm, *key_norm, *cos, *sin;
  float *keys, *values, *out;  // out is [tokens, heads * head_dim]
};

struct DeltaShape {
  int64_t num_key_heads, num_value_heads, key_head_dim, value_head_dim, conv_kernel;
  float eps;
};

constexpr int64_t DELTA_COLUMNS = 32;  // of a head's state, that one thread advances at a time

// One chunk's view of a Gated DeltaNet layer. `mixed` and `convolved` are [tokens, channels] with channels q | k | v;
// conv_state is [conv_kernel - 1, channels], the inputs before the chunk; state is [value_heads, key_dim, value_dim].
struct Delta {
  DeltaShape shape;
  int64_t tokens, channels;
  const float *mixed, *gate, *beta, *decay;  // projections: qkv; z [tokens, value_heads * value_dim]; b; a
  const float *conv, *log_decay, *decay_bias, *norm;  // conv [conv_kernel, channels]; log_decay is A_log
  float *convolved, *keeps, *learns;  // scratch; the latter two [tokens, value_heads]: the state's decay; sigmoid(b)
  float *conv_state, *state, *out;
};

struct Kernels {
  const char* name;
  // How many planes activations are dealt out to for this kind of matrix; 0 if it multiplies floats only.
  int64_t (*planes)(Kind);
  // How many rows of activations make up for unpacking a panel of such a matrix.
  int64_t (*fewest_in_panels)(Kind);
  // Rounds a row of `cols` floats.
  void (*round_row)(const float* x, int64_t cols, int64_t planes, Order order, uint8_t* to);
  // The scratch that products with a matrix need, in floats.
  int64_t (*product_scratch)(const Matrix&);
  // y[t, r] = matrix[r] . x[t] for rows first..last; y has `stride` floats per token.
  void (*matmul)(const Matrix&, const Rows& x, float* y, int64_t stride, int64_t first, int64_t last, float* scratch);
  // h[t, r] = silu(gate[r] . x[t]) * (up[r] . z[t]);
  // x and z are the same rows, for the one matrix and for the other.
  void (*swiglu)(const Matrix& gate, const Matrix& up, const Rows& x, const Rows& z, float* h, int64_t stride,
                 int64_t first, int64_t last, float* scratch);
  // y[index[t], r] += weight[t] * (matrix[r] . h[t]), one rounding after the product and one after the sum.
  void (*accumulate)(const Matrix&, const Rows& h, const int32_t* index, const float* weight, float* y, int64_t stride,
                     int64_t first, int64_t last, float* scratch);
  // y[c] = matrix[row, c]: a stored row as float32.
  void (*row)(const Matrix&, int64_t row, float* y);
  // y = x / sqrt(mean(x^2) + eps) * weight.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, int64_t count);
  // y = y + weight * x, one rounding after the product and one after the sum.
  void (*add_share)(const float* x, float weight, float* y, int64_t count);
  // y = y + sigmoid(gate) * x.
  void (*add_gated)(const float* x, float gate, float* y, int64_t count);
  // The k largest of softmax(logits), renormalised to sum 1, largest first; ties go to the lower id. scratch: [count].
  // Always k distinct ids and finite weights: infinite logits count as the largest finite ones, no numbers as the least.
  void (*route)(const float* logits, int64_t count, int64_t k, int32_t* ids, float* weights, float* scratch);
  // Of one token: the cache's new row.
  void (*attention_cache)(const Attention&, int64_t token);
  // queries [head_dim, ATTENTION_ROWS] of a tile: normed, rotated and divided by sqrt(head_dim); absent rows are zero.
  // sum is the partial result of no block at all.
  void (*attention_start)(const Attention&, int64_t tile, float* queries, float* sum);
  // The partial result of a tile's rows over the positions of a block. scores: ATTENTION_BLOCK * ATTENTION_ROWS floats.
  void (*attention_block)(const Attention&, int64_t tile, int64_t block, const float* queries, float* scores,
                          float* partial);
  // sum, the partial result of all blocks before, takes in that of the next one.
  void (*attention_join)(const Attention&, const float* partial, float* sum);
  // out of a tile's rows, from the partial result of all blocks.
  void (*attention_finish)(const Attention&, int64_t tile, const float* sum);
  // Of q, k and v heads first..last, numbered through, all tokens: convolution, SiLU, norm, and a v head's rates.
  void (*delta_inputs)(const Delta&, int64_t first, int64_t last);
  // Advances conv_state.
  void (*delta_shift)(const Delta&);
  // The gated delta rule of DELTA_COLUMNS columns of a value head, all tokens; advances its state.
  // scratch: DELTA_COLUMNS * key_dim floats.
  void (*delta_slice)(const Delta&, int64_t head, int64_t slice, float* scratch);
  // The gated norm of one token's value head: row = token * value_heads + head.
  void (*delta_outputs)(const Delta&, int64_t row);
};

// The best table this machine can run, or the one MOEPACK_ISA names (std::runtime_error if it cannot).
const Kernels& kernels();

}  // namespace moepack
