// Products of stored matrices with rows of activations: plain, SwiGLU, and the weighted sum over experts.
//
// Every dot product has one shape whatever is computed beside it: sixteen running sums over ascending columns, then the
// reduction tree of simd.h. Tiles (some rows by some tokens) only decide which dot products share loads.
#include "affine.h"
#include "declarations.h"
#include "floatmat.h"
#include "grids.h"

namespace moepack::MOEPACK_ISA {

namespace {

constexpr int64_t BLOCK_ROWS = 16, BLOCK_TOKENS = 32;
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers; elsewhere 16
constexpr int TILE_TOKENS = 8, ROWS_OF_ONE_TOKEN = 8;
#else
constexpr int TILE_TOKENS = 4, ROWS_OF_ONE_TOKEN = 4;
#endif

struct Block {
  float dots[BLOCK_TOKENS][BLOCK_ROWS];
};

// out[t][r] = row `row + r` . x[t] for R rows and T tokens at once.
template <typename Source, int R, int T>
inline void tile(const Matrix& m, int64_t row, const float* const* x, float (*out)[BLOCK_ROWS]) {
  F16 sums[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r][t] = set(0.0f);
  Source::template walk<R>(m, row, [&](int64_t column, int64_t left, const F16(&w)[R]) __attribute__((always_inline)) {
    for (int t = 0; t < T; ++t) {
      const F16 v = left >= LANES ? load(x[t] + column) : load_part(x[t] + column, left);
      for (int r = 0; r < R; ++r) sums[r][t] = fma(w[r], v, sums[r][t]);
    }
  });
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) out[t][r] = Source::scale(m, row + r) * reduce_add(sums[r][t]);
}

template <typename Source, int T>
inline void rows_of_tile(const Matrix& m, int64_t row, int64_t rows, const float* const* x, float (*out)[BLOCK_ROWS]) {
  constexpr int R = T == 1 ? ROWS_OF_ONE_TOKEN : ROWS_OF_TOKENS;
  int64_t r = 0;
  for (; r + R <= rows; r += R) tile<Source, R, T>(m, row + r, x, reinterpret_cast<float (*)[BLOCK_ROWS]>(&out[0][r]));
  for (; r < rows; ++r) tile<Source, 1, T>(m, row + r, x, reinterpret_cast<float (*)[BLOCK_ROWS]>(&out[0][r]));
}

// block.dots[t][r] = row `row + r` . x[token + t].
template <typename Source>
void fill_from(const Matrix& m, int64_t row, int64_t rows, const Rows& x, int64_t token, int64_t tokens, Block& block) {
  const float* pointers[BLOCK_TOKENS];
  for (int64_t t = 0; t < tokens; ++t) pointers[t] = x[token + t];
  int64_t t = 0;
  for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
    rows_of_tile<Source, TILE_TOKENS>(m, row, rows, pointers + t, block.dots + t);
  for (; t + 2 <= tokens; t += 2) rows_of_tile<Source, 2>(m, row, rows, pointers + t, block.dots + t);
  if (t < tokens) rows_of_tile<Source, 1>(m, row, rows, pointers + t, block.dots + t);
}

// Calls run(source) with the source of the matrix's kind.
template <typename Run> inline void with_source(const Matrix& m, Run&& run) {
  switch (m.kind) {
    case Kind::affine2: return run(Affine<2>{});
    case Kind::affine3: return run(Affine<3>{});
    case Kind::affine4: return run(Affine<4>{});
    case Kind::affine6: return run(Affine<6>{});
    case Kind::affine8: return run(Affine<8>{});
    case Kind::bf16: return run(Float<Kind::bf16>{});
    case Kind::f16: return run(Float<Kind::f16>{});
    case Kind::f32: return run(Float<Kind::f32>{});
    case Kind::steps2: return m.group == 16 ? run(Grids<2, 1, 16>{}) : run(Grids<2, 1, 32>{});
    case Kind::steps3: return m.group == 16 ? run(Grids<3, 1, 16>{}) : run(Grids<3, 1, 32>{});
    case Kind::books2: return m.group == 8 ? run(Grids<2, 2, 8>{}) : run(Grids<2, 2, 16>{});
    case Kind::books3: return m.group == 8 ? run(Grids<3, 2, 8>{}) : run(Grids<3, 2, 16>{});
  }
}

void fill(const Matrix& m, int64_t row, int64_t rows, const Rows& x, int64_t token, int64_t tokens, Block& block) {
  with_source(m, [&](auto source) { fill_from<decltype(source)>(m, row, rows, x, token, tokens, block); });
}

// Calls use(token, row, tokens, rows) for every block; tokens outside, so that a block's activations stay in the cache.
template <typename Use> inline void blocks(int64_t tokens, int64_t first, int64_t last, Use&& use) {
  for (int64_t token = 0; token < tokens; token += BLOCK_TOKENS)
    for (int64_t row = first; row < last; row += BLOCK_ROWS)
      use(token, row, tokens - token < BLOCK_TOKENS ? tokens - token : BLOCK_TOKENS,
          last - row < BLOCK_ROWS ? last - row : BLOCK_ROWS);
}

}  // namespace

void matmul(const Matrix& m, const Rows& x, float* y, int64_t stride, int64_t first, int64_t last) {
  Block block;
  blocks(x.count, first, last, [&](int64_t token, int64_t row, int64_t tokens, int64_t rows) {
    fill(m, row, rows, x, token, tokens, block);
    for (int64_t t = 0; t < tokens; ++t)
      std::memcpy(y + (token + t) * stride + row, block.dots[t], static_cast<size_t>(rows) * sizeof(float));
  });
}

void swiglu(const Matrix& gate, const Matrix& up, const Rows& x, float* h, int64_t stride, int64_t first,
            int64_t last) {
  static_assert(BLOCK_ROWS == LANES);
  Block gates = {}, ups = {};
  blocks(x.count, first, last, [&](int64_t token, int64_t row, int64_t tokens, int64_t rows) {
    fill(gate, row, rows, x, token, tokens, gates);
    fill(up, row, rows, x, token, tokens, ups);
    for (int64_t t = 0; t < tokens; ++t)
      store_up_to(h + (token + t) * stride + row, mul(silu(load(gates.dots[t])), load(ups.dots[t])), rows);
  });
}

void accumulate(const Matrix& m, const Rows& h, const int32_t* index, const float* weight, float* y, int64_t stride,
                int64_t first, int64_t last) {
  Block block = {};
  blocks(h.count, first, last, [&](int64_t token, int64_t row, int64_t tokens, int64_t rows) {
    fill(m, row, rows, h, token, tokens, block);
    for (int64_t t = 0; t < tokens; ++t) {
      float* const to = y + index[token + t] * stride + row;
      const F16 share = mul(set(weight[token + t]), load(block.dots[t]));
      store_up_to(to, add(load_up_to(to, rows), share), rows);
    }
  });
}

void row(const Matrix& m, int64_t row, float* y) {
  with_source(m, [&](auto source) {
    using Source = decltype(source);
    const F16 scale = set(Source::scale(m, row));
    Source::template walk<1>(m, row, [&](int64_t column, int64_t left, const F16(&w)[1]) {
      store_up_to(y + column, mul(w[0], scale), left);
    });
  });
}

}  // namespace moepack::MOEPACK_ISA
