// The gated delta rule as a Python function: shapes are checked, the GIL is released, and the state's heads and columns
// are shared out, piece by piece of a long chunk, so that what lies between the steps stays in the caches.
#include <algorithm>
#include <memory>

#include "../kernels/cpu/kernels.h"
#include "operations.h"
#include "pool.h"

namespace moepack {

namespace {

constexpr int64_t PIECE = 128;      // tokens
constexpr int64_t HEADS = 4;        // value heads for each thread: with fewer, threads share a head's columns
constexpr int64_t INPUT_GRAIN = 8;  // heads of one token that are worth handing to another thread
constexpr int64_t OUTPUT_GRAIN = 16;

// Tokens first.. of a chunk, at most PIECE; scratch starts anew for each piece, state and conv_state go on.
Delta piece_of(const Delta& d, int64_t first) {
  const int64_t heads = d.shape.num_value_heads, width = heads * d.shape.value_head_dim;
  Delta piece = d;
  piece.tokens = std::min(PIECE, d.tokens - first);
  piece.mixed += first * d.channels, piece.gate += first * width, piece.out += first * width;
  piece.beta += first * heads, piece.decay += first * heads;
  return piece;
}

void advance(Pool& pool, const Delta& d) {
  const DeltaShape& s = d.shape;
  const int64_t slices = (s.value_head_dim + DELTA_COLUMNS - 1) / DELTA_COLUMNS;
  pool.run(2 * s.num_key_heads + s.num_value_heads, std::max<int64_t>(1, INPUT_GRAIN / d.tokens),
           [&](int64_t first, int64_t last, int) { kernels().delta_inputs(d, first, last); });
  kernels().delta_shift(d);
  const int64_t grain = s.num_value_heads < HEADS * pool.threads() ? 1 : slices;
  pool.run(s.num_value_heads * slices, grain, [&](int64_t first, int64_t last, int thread) {
    for (int64_t i = first; i < last; ++i) kernels().delta_slice(d, i / slices, i % slices, pool.scratch(thread));
  }, DELTA_COLUMNS * s.key_head_dim);
  pool.run(d.tokens * s.num_value_heads, OUTPUT_GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) kernels().delta_outputs(d, row);
  });
}

DeltaShape delta_shape(int64_t key_heads, int64_t value_heads, int64_t key_dim, int64_t value_dim, int64_t kernel,
                       float eps) {
  require(
      key_heads > 0 && value_heads > 0 && value_heads % key_heads == 0 && key_dim > 0 && value_dim > 0 && kernel > 0,
      "delta: no such shape");
  return {key_heads, value_heads, key_dim, value_dim, kernel, eps};
}

void delta(Pool& pool, const DeltaShape& s, In2 mixed, In2 gate, In2 beta, In2 decay, In2 conv, In1 log_decay,
           In1 decay_bias, In1 norm, Out2 conv_state, Array<float, 3> state, Out2 out) {
  const int64_t tokens = extent(out, 0), width = s.num_value_heads * s.value_head_dim;
  const int64_t channels = 2 * s.num_key_heads * s.key_head_dim + width;
  require(extent(out, 1) == width && extent(mixed, 1) == channels && extent(gate, 1) == width &&
              extent(beta, 1) == s.num_value_heads && extent(decay, 1) == s.num_value_heads &&
              extent(mixed, 0) == tokens && extent(gate, 0) == tokens && extent(beta, 0) == tokens &&
              extent(decay, 0) == tokens,
          "delta: projections do not fit");
  require(extent(conv, 0) == s.conv_kernel && extent(conv, 1) == channels &&
              extent(log_decay, 0) == s.num_value_heads && extent(decay_bias, 0) == s.num_value_heads &&
              extent(norm, 0) == s.value_head_dim,
          "delta: weights do not fit");
  require(extent(conv_state, 0) == s.conv_kernel - 1 && extent(conv_state, 1) == channels &&
              extent(state, 0) == s.num_value_heads && extent(state, 1) == s.key_head_dim &&
              extent(state, 2) == s.value_head_dim,
          "delta: the state does not fit");
  nb::gil_scoped_release release;
  const int64_t piece = std::min(PIECE, tokens), rates = piece * s.num_value_heads;
  const auto room = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(piece * channels + 2 * rates));
  float *convolved = room.get(), *keeps = convolved + piece * channels, *learns = keeps + rates;
  const Delta d = {s,           tokens,           channels,          mixed.data(),      gate.data(), beta.data(),
                   decay.data(), conv.data(),     log_decay.data(),  decay_bias.data(), norm.data(), convolved,
                   keeps,       learns,           conv_state.data(), state.data(),      out.data()};
  for (int64_t first = 0; first < tokens; first += PIECE) advance(pool, piece_of(d, first));
}

}  // namespace

void bind_delta(nb::module_& m) {
  nb::class_<DeltaShape>(m, "DeltaShape");
  m.def("delta_shape", &delta_shape, nb::arg("key_heads"), nb::arg("value_heads"), nb::arg("key_dim"),
        nb::arg("value_dim"), nb::arg("conv_kernel"), nb::arg("eps"));
  m.def("delta", &delta, nb::arg("pool"), nb::arg("shape"), exact("mixed"), exact("gate"), exact("beta"),
        exact("decay"), exact("conv"), exact("log_decay"), exact("decay_bias"), exact("norm"), exact("conv_state"),
        exact("state"), exact("out"));
}

}  // namespace moepack
