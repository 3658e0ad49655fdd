// Attention as a Python function: shapes are checked, the GIL is released, and tiles of queries and blocks of positions
// are shared out. Who computes what never changes a result: kernels.h says what a block's partial result is, and here
// they are joined in ascending order. What is kept meanwhile does not grow with the context.
#include <algorithm>
#include <memory>

#include "../kernels/cpu/kernels.h"
#include "operations.h"
#include "pool.h"

namespace moepack {

namespace {

constexpr int64_t GROUP = 8;        // tiles of a key head that meet a block while it is in the caches
constexpr int64_t KEPT = 64;        // partial results of each key head that wait to be joined
constexpr int64_t RUNS = 8;         // of consecutive blocks, for each thread
constexpr int64_t TOKEN_GRAIN = 8;  // tokens that are worth handing to another thread
constexpr int64_t SCORES = ATTENTION_BLOCK * ATTENTION_ROWS;

int64_t queries_of(const Attention& a) { return a.shape.head_dim * ATTENTION_ROWS; }
int64_t partial_of(const Attention& a) { return (a.shape.head_dim + 2) * ATTENTION_ROWS; }

// Blocks that some row of the tile sees.
int64_t blocks_of(const Attention& a, int64_t tile) {
  const int64_t group = a.shape.num_heads / a.shape.num_kv_heads;
  const int64_t rows = std::min((tile % a.tiles + 1) * ATTENTION_ROWS, a.tokens * group);
  return (a.position + (rows - 1) / group) / ATTENTION_BLOCK + 1;
}

// Takes tiles first..last, at most GROUP, of one key head through all their blocks.
void attend_group(const Attention& a, int64_t first, int64_t last, float* room) {
  float *queries = room, *sums = queries + GROUP * queries_of(a), *partial = sums + GROUP * partial_of(a);
  const auto query = [&](int64_t tile) { return queries + (tile - first) * queries_of(a); };
  const auto sum = [&](int64_t tile) { return sums + (tile - first) * partial_of(a); };
  for (int64_t tile = first; tile < last; ++tile) kernels().attention_start(a, tile, query(tile), sum(tile));
  for (int64_t block = 0; block < blocks_of(a, last - 1); ++block)
    for (int64_t tile = first; tile < last; ++tile) {
      if (block >= blocks_of(a, tile)) continue;
      kernels().attention_block(a, tile, block, query(tile), partial + partial_of(a), partial);
      kernels().attention_join(a, partial, sum(tile));
    }
  for (int64_t tile = first; tile < last; ++tile) kernels().attention_finish(a, tile, sum(tile));
}

// Many tiles, of which threads take groups; those with the most positions first, so that threads end together.
void attend_many_tiles(Pool& pool, const Attention& a) {
  const int64_t heads = a.shape.num_kv_heads, even = a.tiles * heads / (2 * pool.threads());
  const int64_t group = std::clamp(even, int64_t{1}, GROUP), groups = (a.tiles + group - 1) / group;
  const auto take = [&](int64_t item, int thread) {
    const int64_t of_head = (groups - 1 - item / heads) * group, first = item % heads * a.tiles;
    attend_group(a, first + of_head, first + std::min(of_head + group, a.tiles), pool.scratch(thread));
  };
  pool.run(groups * heads, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t item = first; item < last; ++item) take(item, thread);
  }, GROUP * (queries_of(a) + partial_of(a)) + partial_of(a) + SCORES);
}

// Few tiles, of which threads take blocks; `step` blocks of each tile wait to be joined.
class FewTiles {
 public:
  FewTiles(Pool& pool, const Attention& a)
      : pool_(pool),
        a_(a),
        tiles_(a.tiles * a.shape.num_kv_heads),
        blocks_(blocks_of(a, a.tiles - 1)),
        step_(std::min(KEPT / a.tiles, blocks_)) {
    const int64_t floats = tiles_ * (queries_of(a) + (1 + step_) * partial_of(a));
    room_ = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(floats + LINE));
    queries_ = aligned(room_.get());
  }

  void attend() {
    each_tile([&](int64_t tile) { kernels().attention_start(a_, tile, queries(tile), sum(tile)); });
    for (int64_t done = 0; done < blocks_; done += step_) {
      const int64_t count = std::min(step_, blocks_ - done);
      share_blocks(done, count);
      each_tile([&](int64_t tile) { join(tile, done, count); });
    }
    each_tile([&](int64_t tile) { kernels().attention_finish(a_, tile, sum(tile)); });
  }

 private:
  float* queries(int64_t tile) { return queries_ + tile * queries_of(a_); }
  float* sum(int64_t tile) { return queries(tiles_) + tile * partial_of(a_); }
  float* partial(int64_t tile, int64_t i) { return sum(tiles_) + (tile * step_ + i) * partial_of(a_); }

  template <typename Work> void each_tile(const Work& work) {
    pool_.run(tiles_, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t tile = first; tile < last; ++tile) work(tile);
    });
  }

  // Runs of consecutive blocks, each of which serves all tiles of its key head while in the caches.
  void share_blocks(int64_t done, int64_t count) {
    const int64_t items = count * a_.shape.num_kv_heads, even = items / (RUNS * pool_.threads());
    pool_.run(items, std::max<int64_t>(1, even), [&](int64_t first, int64_t last, int thread) {
      for (int64_t item = first; item < last; ++item)
        block(item / count, done, item % count, pool_.scratch(thread));
    }, SCORES);
  }

  void block(int64_t head, int64_t done, int64_t i, float* scores) {
    for (int64_t tile = head * a_.tiles; tile < (head + 1) * a_.tiles; ++tile)
      if (done + i < blocks_of(a_, tile))
        kernels().attention_block(a_, tile, done + i, queries(tile), scores, partial(tile, i));
  }

  void join(int64_t tile, int64_t done, int64_t count) {
    for (int64_t i = 0; i < count && done + i < blocks_of(a_, tile); ++i)
      kernels().attention_join(a_, partial(tile, i), sum(tile));
  }

  Pool& pool_;
  const Attention& a_;
  const int64_t tiles_, blocks_, step_;
  std::unique_ptr<float[]> room_;
  float* queries_;
};

AttentionShape attention_shape(int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary, float eps) {
  require(
      heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && dim > 0 && rotary >= 0 && rotary % 2 == 0 && rotary <= dim,
      "attention: no such shape");
  return {heads, kv_heads, dim, rotary, eps};
}

void attention(Pool& pool, const AttentionShape& s, int64_t position, In2 query_gate, In2 key, In2 value,
               In1 query_norm, In1 key_norm, In2 cos, In2 sin, Out2 keys, Out2 values, Out2 out) {
  const int64_t tokens = extent(out, 0), width = s.num_heads * s.head_dim, kv_width = s.num_kv_heads * s.head_dim;
  require(extent(out, 1) == width && extent(query_gate, 1) == 2 * width && extent(key, 1) == kv_width &&
              extent(value, 1) == kv_width && extent(query_gate, 0) == tokens && extent(key, 0) == tokens &&
              extent(value, 0) == tokens,
          "attention: projections do not fit");
  require(extent(query_norm, 0) == s.head_dim && extent(key_norm, 0) == s.head_dim && extent(cos, 0) == tokens &&
              extent(sin, 0) == tokens && extent(cos, 1) == s.rotary_dims / 2 && extent(sin, 1) == s.rotary_dims / 2,
          "attention: norms or rotations do not fit");
  require(extent(keys, 1) == kv_width && extent(values, 1) == kv_width && position >= 0 &&
              position + tokens <= extent(keys, 0) && position + tokens <= extent(values, 0),
          "attention: the cache is too small");
  if (tokens == 0) return;
  nb::gil_scoped_release release;
  const int64_t tiles = (tokens * (s.num_heads / s.num_kv_heads) + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
  const Attention a = {s,
                       tokens,
                       position,
                       tiles,
                       query_gate.data(),
                       key.data(),
                       value.data(),
                       query_norm.data(),
                       key_norm.data(),
                       cos.data(),
                       sin.data(),
                       keys.data(),
                       values.data(),
                       out.data()};
  pool.run(tokens, TOKEN_GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) kernels().attention_cache(a, t);
  });
  if (tiles > GROUP) attend_many_tiles(pool, a);
  else FewTiles(pool, a).attend();
}

}  // namespace

void bind_attention(nb::module_& m) {
  nb::class_<AttentionShape>(m, "AttentionShape");
  m.def("attention_shape", &attention_shape, nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"),
        nb::arg("rotary_dims"), nb::arg("eps"));
  m.def("attention", &attention, nb::arg("pool"), nb::arg("shape"), nb::arg("position"), exact("query_gate"),
        exact("key"), exact("value"), exact("query_norm"), exact("key_norm"), exact("cos"), exact("sin"), exact("keys"),
        exact("values"), exact("out"));
}

}  // namespace moepack
