// Products of stored matrices with rows of activations: plain, SwiGLU, and the weighted sum over experts.
//
// With float activations every dot product has one shape whatever is computed beside it: sixteen running sums over
// ascending columns, then the reduction tree of simd.h. Tiles (some rows by some tokens) only decide which dot products
// share loads. With rounded ones the shape is that of rounded.h.
#include "affine.h"
#include "declarations.h"
#include "floatmat.h"
#include "grids.h"
#include "panel.h"

namespace moepack::MOEPACK_ISA {

namespace {

constexpr int64_t BLOCK_ROWS = 16, BLOCK_TOKENS = 32;
constexpr int FEW_TOKENS = 3;  // that share unpacked weights; with 4096 columns more do not fit an L1 cache of 32 KiB
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers; elsewhere 16
constexpr int TILE_TOKENS = 8, ROWS_OF_ONE_TOKEN = 8, PANEL_TOKENS = 6;
#else
constexpr int TILE_TOKENS = 4, ROWS_OF_ONE_TOKEN = 4, PANEL_TOKENS = 3;
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

// Calls run(codes) for a kind that multiplies rounded activations.
template <typename Run> inline void with_codes(const Matrix& m, Run&& run) {
  switch (m.kind) {
    case Kind::affine2: return run(AffineCodes<2>(m));
    case Kind::affine3: return run(AffineCodes<3>(m));
    case Kind::affine4: return run(AffineCodes<4>(m));
    case Kind::affine6: return run(AffineCodes<6>(m));
    case Kind::affine8: return run(AffineCodes<8>(m));
    case Kind::books2: return m.group == 8 ? run(BookCodes<2, 8>(m)) : run(BookCodes<2, 16>(m));
    case Kind::books3: return m.group == 8 ? run(BookCodes<3, 8>(m)) : run(BookCodes<3, 16>(m));
    default: return;
  }
}

// Calls use(token, row, tokens, rows, block) for every block; tokens outside, so that a block's activations stay in the
// cache.
template <typename Use> void float_products(const Matrix& m, const Rows& x, int64_t first, int64_t last, Use&& use) {
  Block block = {};
  for (int64_t token = 0; token < x.count; token += BLOCK_TOKENS)
    for (int64_t row = first; row < last; row += BLOCK_ROWS) {
      const int64_t tokens = x.count - token < BLOCK_TOKENS ? x.count - token : BLOCK_TOKENS;
      const int64_t rows = last - row < BLOCK_ROWS ? last - row : BLOCK_ROWS;
      fill(m, row, rows, x, token, tokens, block);
      use(token, row, tokens, rows, block);
    }
}

// Of T tokens at a time from `token` on, then of fewer, so that none is left alone.
template <typename Codes, int T>
void few_products(const Matrix& m, const Rows& x, int64_t token, int64_t row, int64_t rows, float* room, Block& block) {
  for (; token + T <= x.count && (T == 1 || token + T + 1 != x.count); token += T) {
    RoundedRow tokens[T];
    for (int t = 0; t < T; ++t) tokens[t] = row_of(m, x.rounded_row(token + t));
    dot_rows<Codes>(m, row, rows, tokens, room, block.dots + token);
  }
  if constexpr (T > 1) few_products<Codes, T - 1>(m, x, token, row, rows, room, block);
}

template <typename Codes, typename Use>
void few_by_row(const Matrix& m, const Rows& x, int64_t row, int64_t rows, float* room, Use&& use) {
  static_assert(FEW_TOKENS <= 2 * PANEL_ROWS);  // what the room has floats for, of every block
  Block block = {};
  few_products<Codes, FEW_TOKENS>(m, x, 0, row, rows, room, block);
  use(int64_t{0}, row, x.count, rows, block);
}

// The next tile to try when there are too few tokens for one of `tokens`.
constexpr int smaller(int tokens) { return tokens > 4 ? 4 : tokens > 2 ? 2 : 1; }

// Tiles of T tokens from `token` on, then smaller ones.
template <typename Codes, int T, typename Use>
void tiles(const Matrix& m, const Panel& panel, const Rows& x, int64_t token, int64_t row, int64_t rows, Use&& use) {
  Block block;
  for (; token + T <= x.count; token += T) {
    Tokens<T> tokens;
    Sums<T> dots;
    for (int t = 0; t < T; ++t) tokens.rows[t] = x.rounded_row(token + t);
    panel_tile<Codes>(m, panel, tokens, dots);
    for (int s = 0; s * 16 < rows; ++s) {
      for (int t = 0; t < T; ++t) store(block.dots[t], dots.of[s * T + t]);
      use(token, row + 16 * s, int64_t{T}, rows - 16 * s < 16 ? rows - 16 * s : int64_t{16}, block);
    }
  }
  if constexpr (T > 1) tiles<Codes, smaller(T)>(m, panel, x, token, row, rows, use);
}

// Rows outside, so that each is unpacked once.
template <typename Use>
void rounded_products(const Matrix& m, const Rows& x, int64_t first, int64_t last, float* scratch, Use&& use) {
  with_codes(m, [&]<typename Codes>(const Codes& codes) {
    const Panel panel = panel_in(m, scratch);
    if (x.count < fewest_in_panels(m.kind)) {
      for (int64_t row = first; row < last; row += BLOCK_ROWS)
        few_by_row<Codes>(m, x, row, last - row < BLOCK_ROWS ? last - row : BLOCK_ROWS, panel.scales, use);
      return;
    }
    for (int64_t row = first; row < last; row += PANEL_ROWS) {
      fill_panel(m, codes, row, panel);
      tiles<Codes, PANEL_TOKENS>(m, panel, x, 0, row, last - row < PANEL_ROWS ? last - row : PANEL_ROWS, use);
    }
  });
}

template <typename Use>
void products(const Matrix& m, const Rows& x, int64_t first, int64_t last, float* scratch, Use&& use) {
  if (x.rounded) rounded_products(m, x, first, last, scratch, use);
  else float_products(m, x, first, last, use);
}

}  // namespace

int64_t planes(Kind kind) {
  switch (kind) {
    case Kind::affine2:
    case Kind::books2: return 4;
    case Kind::affine4: return 2;
    case Kind::affine3:
    case Kind::affine6:
    case Kind::affine8:
    case Kind::books3: return 1;
    default: return 0;
  }
}

// Measured, with AVX2 and AVX-512: what takes longer to unpack is worth a panel sooner.
int64_t fewest_in_panels(Kind kind) {
  switch (kind) {
    case Kind::affine3:
    case Kind::affine6:
    case Kind::books3: return 4;
    case Kind::affine4:
    case Kind::affine8: return 6;
    default: return 8;
  }
}

int64_t product_scratch(const Matrix& m) { return planes(m.kind) == 0 ? 0 : panel_floats(m); }

void matmul(const Matrix& m, const Rows& x, float* y, int64_t stride, int64_t first, int64_t last, float* scratch) {
  products(m, x, first, last, scratch,
           [&](int64_t token, int64_t row, int64_t tokens, int64_t rows, const Block& block) {
             for (int64_t t = 0; t < tokens; ++t)
               store_up_to(y + (token + t) * stride + row, load(block.dots[t]), rows);
           });
}

void swiglu(const Matrix& gate, const Matrix& up, const Rows& x, const Rows& z, float* h, int64_t stride, int64_t first,
            int64_t last, float* scratch) {
  static_assert(BLOCK_ROWS == LANES);
  matmul(gate, x, h, stride, first, last, scratch);
  products(up, z, first, last, scratch,
           [&](int64_t token, int64_t row, int64_t tokens, int64_t rows, const Block& block) {
             for (int64_t t = 0; t < tokens; ++t) {
               float* const to = h + (token + t) * stride + row;
               store_up_to(to, mul(silu(load_up_to(to, rows)), load(block.dots[t])), rows);
             }
           });
}

void accumulate(const Matrix& m, const Rows& h, const int32_t* index, const float* weight, float* y, int64_t stride,
                int64_t first, int64_t last, float* scratch) {
  products(m, h, first, last, scratch,
           [&](int64_t token, int64_t row, int64_t tokens, int64_t rows, const Block& block) {
             for (int64_t t = 0; t < tokens; ++t) {
               float* const to = y + index[token + t] * stride + row;
               const int64_t next = token + tokens + t;  // rows lie far apart, and are met one by one
               if (next < h.count) __builtin_prefetch(y + index[next] * stride + row, 1);
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
