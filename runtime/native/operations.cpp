// The kernels as Python functions: shapes are checked, the GIL is released, and the pool shares out the rows.
#include "operations.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "activations.h"
#include "memory.h"
#include "pool.h"
#include "weights.h"

namespace moepack {

namespace {

constexpr int64_t ROW_GRAIN = 32;          // whole panels of the kernels
constexpr int64_t LEAST_WORK = 64 * 1024;  // multiplications worth handing to another thread

// Rows per piece: small enough to even out threads of unequal speed, large enough to be worth handing out.
int64_t grain_of(const Pool& pool, int64_t rows, int64_t work_per_row) {
  const int64_t even = rows / (pool.threads() * 16), worth = LEAST_WORK / (work_per_row + 1) + 1;
  return ((even > worth ? even : worth) + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN;
}

// One product of a matrix with all rows of some activations: y is [rows of x][rows of the matrix].
struct Product {
  const Matrix* matrix;
  Rows x;
  float* y;
};

int64_t scratch_of(const Matrix& m, const Rows& x) { return x.rounded ? kernels().product_scratch(m) : 0; }

// Calls work(part, first, last, thread) for pieces of rows of several parts, of sizes[part] rows each, all at once.
template <typename Work>
void run_parts(Pool& pool, const std::vector<int64_t>& sizes, int64_t grain, int64_t scratch, const Work& work) {
  std::vector<int64_t> starts = {0};  // in whole blocks of rows, so that no block is shared
  for (const int64_t size : sizes) starts.push_back(starts.back() + (size + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN);
  pool.run(starts.back(), grain, [&](int64_t first, int64_t last, int thread) {
    for (size_t part = 0; part < sizes.size(); ++part) {
      const int64_t from = std::max(first, starts[part]) - starts[part];
      const int64_t to = std::min(last - starts[part], sizes[part]);
      if (from < to) work(part, from, to, thread);
    }
  }, scratch);
}

void multiply(Pool& pool, const std::vector<Product>& products) {
  std::vector<int64_t> sizes;
  int64_t scratch = 0, rows = 0, work = 0;
  for (const Product& p : products) {
    sizes.push_back(p.matrix->rows);
    scratch = std::max(scratch, scratch_of(*p.matrix, p.x));
    rows += p.matrix->rows, work = std::max(work, p.matrix->cols * p.x.count);
  }
  run_parts(pool, sizes, grain_of(pool, rows, work), scratch, [&](size_t part, int64_t first, int64_t last, int thread) {
    const Product& p = products[part];
    kernels().matmul(*p.matrix, p.x, p.y, p.matrix->rows, first, last, pool.scratch(thread));
  });
}

void matmul(Pool& pool, const std::vector<const HeldMatrix*>& matrices, Activations& x, const std::vector<Out2>& ys) {
  require(matrices.size() == ys.size(), "matmul: as many outputs as matrices");
  for (size_t i = 0; i < ys.size(); ++i)
    require(x.width() == matrices[i]->view.cols && extent(ys[i], 1) == matrices[i]->view.rows &&
                extent(ys[i], 0) == x.count(),
            "matmul: shapes do not fit");
  nb::gil_scoped_release release;
  std::vector<Product> products;
  for (size_t i = 0; i < ys.size(); ++i) {
    const Matrix& m = matrices[i]->view;
    products.push_back({&m, x.rows(pool, m.kind, matrices[i]->precision), ys[i].data()});
  }
  multiply(pool, products);
}

void swiglu(Pool& pool, const HeldMatrix& gate, const HeldMatrix& up, Activations& x, Out2 h) {
  const Matrix &g = gate.view, &u = up.view;
  require(g.rows == u.rows && g.cols == u.cols && x.width() == g.cols && extent(h, 1) == g.rows &&
              x.count() == extent(h, 0),
          "swiglu: shapes do not fit");
  nb::gil_scoped_release release;
  const Rows for_gate = x.rows(pool, g.kind), for_up = x.rows(pool, u.kind);
  pool.run(g.rows, grain_of(pool, g.rows, 2 * g.cols * x.count()), [&](int64_t first, int64_t last, int thread) {
    kernels().swiglu(g, u, for_gate, for_up, h.data(), g.rows, first, last, pool.scratch(thread));
  }, std::max(scratch_of(g, for_gate), scratch_of(u, for_up)));
}

void embed(const HeldMatrix& table, Array<const int32_t, 1> ids, Out2 y) {
  const Matrix& m = table.view;
  require(extent(y, 1) == m.cols && extent(y, 0) == extent(ids, 0), "embed: shapes do not fit");
  for (size_t t = 0; t < ids.size(); ++t) require(ids.data()[t] >= 0 && ids.data()[t] < m.rows, "embed: no such row");
  nb::gil_scoped_release release;
  for (size_t t = 0; t < ids.size(); ++t) kernels().row(m, ids.data()[t], y.data() + static_cast<int64_t>(t) * m.cols);
}

void rms_norm(Pool& pool, In2 x, In1 weight, float eps, Out2 y) {
  const int64_t width = extent(x, 1);
  require(extent(weight, 0) == width && extent(y, 1) == width && extent(x, 0) == extent(y, 0),
          "rms_norm: shapes do not fit");
  nb::gil_scoped_release release;
  pool.run(extent(x, 0), 8, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t)
      kernels().rms_norm(x.data() + t * width, weight.data(), eps, y.data() + t * width, width);
  });
}

void add_gated(Pool& pool, In2 x, In2 gate, Out2 y) {
  const int64_t width = extent(x, 1);
  require(
      extent(y, 1) == width && extent(y, 0) == extent(x, 0) && extent(gate, 0) == extent(x, 0) && extent(gate, 1) == 1,
      "add_gated: shapes do not fit");
  nb::gil_scoped_release release;
  pool.run(extent(x, 0), 8, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t)
      kernels().add_gated(x.data() + t * width, gate.data()[t], y.data() + t * width, width);
  });
}

void route(Pool& pool, In2 logits, Array<int32_t, 2> ids, Out2 weights) {
  const int64_t experts = extent(logits, 1), k = extent(ids, 1);
  require(k >= 1 && k <= experts && extent(weights, 1) == k && extent(ids, 0) == extent(logits, 0) &&
              extent(weights, 0) == extent(logits, 0),
          "route: shapes do not fit");
  nb::gil_scoped_release release;
  pool.run(extent(logits, 0), 8, [&](int64_t first, int64_t last, int thread) {
    for (int64_t t = first; t < last; ++t)
      kernels().route(logits.data() + t * experts, experts, k, ids.data() + t * k, weights.data() + t * k,
                      pool.scratch(thread));
  }, experts);
}

// y[tokens[i]] += weights[i] * expert(x[tokens[i]])
void expert(Pool& pool, const RecordViews& layout, Bytes record, Activations& x, Array<const int32_t, 1> tokens,
            In1 weights, Out2 y) {
  const int64_t count = extent(tokens, 0), wide = layout.intermediate;
  require(static_cast<int64_t>(record.size()) >= layout.size, "expert: the record is too short");
  require(x.width() == layout.hidden && extent(y, 1) == layout.hidden && x.count() == extent(y, 0) &&
              extent(weights, 0) == count,
          "expert: shapes do not fit");
  for (int64_t i = 0; i < count; ++i)
    require(tokens.data()[i] >= 0 && tokens.data()[i] < x.count(), "expert: no such token");
  nb::gil_scoped_release release;
  const Expert e = layout.expert(record.data());
  const Rows for_gate = x.chosen(pool, e.gate.kind, tokens.data(), count);
  const Rows for_up = x.chosen(pool, e.up.kind, tokens.data(), count);
  const Room<float> hidden = room_for<float>(count * wide);
  pool.run(wide, grain_of(pool, wide, 2 * layout.hidden * count), [&](int64_t first, int64_t last, int thread) {
    kernels().swiglu(e.gate, e.up, for_gate, for_up, hidden.get(), wide, first, last, pool.scratch(thread));
  }, std::max(scratch_of(e.gate, for_gate), scratch_of(e.up, for_up)));
  Activations inner(hidden.get(), count, wide, x.precision());
  const Rows h = inner.rows(pool, e.down.kind);
  pool.run(layout.hidden, grain_of(pool, layout.hidden, wide * count), [&](int64_t first, int64_t last, int thread) {
    kernels().accumulate(e.down, h, tokens.data(), weights.data(), y.data(), layout.hidden, first, last,
                         pool.scratch(thread));
  }, scratch_of(e.down, h));
}

// An expert, the rows of activations that it sees, and the first of the results that they become.
struct Visit {
  Expert expert;
  Rows for_gate, for_up, for_down;
  int64_t first;
};

using TokenLists = std::vector<std::vector<int32_t>>;

int64_t pairs_of(const TokenLists& tokens) {
  size_t pairs = 0;
  for (const auto& each : tokens) pairs += each.size();
  return static_cast<int64_t>(pairs);
}

void check_visits(const RecordViews& layout, const std::vector<Bytes>& records, const TokenLists& tokens,
                  const Activations& x, const Out2& y) {
  for (const Bytes& record : records)
    require(static_cast<int64_t>(record.size()) >= layout.size, "experts: a record is too short");
  for (const auto& each : tokens)
    for (const int32_t token : each) require(token >= 0 && token < x.count(), "experts: no such token");
  require(tokens.size() == records.size() && x.width() == layout.hidden && extent(y, 1) == layout.hidden &&
              extent(y, 0) >= pairs_of(tokens),
          "experts: shapes do not fit");
}

std::vector<Visit> visits_of(Pool& pool, const RecordViews& layout, const std::vector<Bytes>& records,
                             const TokenLists& tokens, Activations& x) {
  std::vector<Visit> visits;
  int64_t first = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const Expert e = layout.expert(records[i].data());
    const int64_t count = static_cast<int64_t>(tokens[i].size());
    const auto rows = [&](Kind kind) { return x.chosen(pool, kind, tokens[i].data(), count); };
    visits.push_back({e, rows(e.gate.kind), rows(e.up.kind), {}, first});
    first += count;
  }
  return visits;
}

int64_t scratch_of(const std::vector<Visit>& visits) {
  int64_t most = 0;
  for (const Visit& v : visits)
    most = std::max({most, scratch_of(v.expert.gate, v.for_gate), scratch_of(v.expert.up, v.for_up),
                     scratch_of(v.expert.down, v.for_down)});
  return most;
}

// Calls work(visit, first, last, thread) for pieces of `rows` rows of every expert; a row has `work_per_pair` to do for
// each of `pairs` in all.
template <typename Work>
void run_visits(Pool& pool, const std::vector<Visit>& visits, int64_t rows, int64_t work_per_pair, int64_t pairs,
                const Work& work) {
  const int64_t count = static_cast<int64_t>(visits.size());
  run_parts(pool, std::vector<int64_t>(visits.size(), rows),
            grain_of(pool, count * rows, work_per_pair * pairs / count), scratch_of(visits),
            [&](size_t i, int64_t first, int64_t last, int thread) { work(visits[i], first, last, thread); });
}

// For expert after expert, token after token of each: y[i] = expert(x[token]); all experts' rows are shared out together.
void experts(Pool& pool, const RecordViews& layout, const std::vector<Bytes>& records, const TokenLists& tokens,
             Activations& x, Out2 y) {
  check_visits(layout, records, tokens, x, y);
  const int64_t pairs = pairs_of(tokens), wide = layout.intermediate;
  if (pairs == 0) return;
  nb::gil_scoped_release release;
  std::vector<Visit> visits = visits_of(pool, layout, records, tokens, x);
  const Room<float> hidden = room_for<float>(pairs * wide);
  run_visits(pool, visits, wide, 2 * layout.hidden, pairs, [&](const Visit& v, int64_t first, int64_t last, int thread) {
    kernels().swiglu(v.expert.gate, v.expert.up, v.for_gate, v.for_up, hidden.get() + v.first * wide, wide, first, last,
                     pool.scratch(thread));
  });
  Activations inner(hidden.get(), pairs, wide, x.precision());
  std::vector<int32_t> rows(static_cast<size_t>(pairs));
  std::iota(rows.begin(), rows.end(), 0);
  for (Visit& v : visits)
    v.for_down = inner.chosen(pool, v.expert.down.kind, rows.data() + v.first, v.for_gate.count);
  run_visits(pool, visits, layout.hidden, wide, pairs, [&](const Visit& v, int64_t first, int64_t last, int thread) {
    kernels().matmul(v.expert.down, v.for_down, y.data() + v.first * layout.hidden, layout.hidden, first, last,
                     pool.scratch(thread));
  });
}

// A token's expert, as `combine` is told of it.
constexpr int64_t pair_of(int64_t token, int32_t expert) { return token << 32 | expert; }

// y[t] += the sum over t's experts, ascending, of weight * part; part i is that of pair came[i].
void combine(Pool& pool, In2 parts, const std::vector<int64_t>& came, Array<const int32_t, 2> ids, In2 weights, Out2 y) {
  const int64_t width = extent(y, 1), tokens = extent(y, 0), k = extent(ids, 1), pairs = tokens * k;
  require(extent(parts, 1) == width && extent(ids, 0) == tokens && extent(weights, 0) == tokens &&
              extent(weights, 1) == k && static_cast<int64_t>(came.size()) == pairs && extent(parts, 0) >= pairs,
          "combine: shapes do not fit");
  std::vector<int64_t> part(came.size()), route(came.size());
  std::iota(part.begin(), part.end(), 0), std::iota(route.begin(), route.end(), 0);
  const auto wanted = [&](int64_t i) { return pair_of(i / k, ids.data()[i]); };
  std::ranges::sort(part, {}, [&](int64_t i) { return came[static_cast<size_t>(i)]; });
  std::ranges::sort(route, {}, wanted);
  for (size_t i = 0; i < part.size(); ++i)
    require(came[static_cast<size_t>(part[i])] == wanted(route[i]), "combine: no such part");
  nb::gil_scoped_release release;
  pool.run(tokens, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first * k; i < last * k; ++i) {
      const size_t at = static_cast<size_t>(i);
      kernels().add_share(parts.data() + part[at] * width, weights.data()[route[at]], y.data() + i / k * width, width);
    }
  });
}

// cos and sin of (position + t) * frequency, the angle rounded to float32 as transformers does.
void rotation(int64_t position, In1 frequencies, Out2 cos, Out2 sin) {
  const int64_t half = extent(frequencies, 0);
  require(extent(cos, 1) == half && extent(sin, 1) == half && extent(cos, 0) == extent(sin, 0),
          "rotation: shapes do not fit");
  for (int64_t t = 0; t < extent(cos, 0); ++t)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(position + t) * frequencies.data()[i];
      cos.data()[t * half + i] = static_cast<float>(std::cos(angle));
      sin.data()[t * half + i] = static_cast<float>(std::sin(angle));
    }
}

}  // namespace

void bind_operations(nb::module_& m) {
  nb::class_<Pool>(m, "Pool")
      .def(
          "__init__",
          [](Pool* self, int threads) {
            require(threads >= 1 && threads <= 1024, "a pool has 1 to 1024 threads");
            new (self) Pool(threads);
          },
          nb::arg("threads"));
  m.def("instruction_set", [] { return kernels().name; });
  m.def("matmul", &matmul, nb::arg("pool"), nb::arg("matrices"), nb::arg("x"), exact("ys"));
  m.def("swiglu", &swiglu, nb::arg("pool"), nb::arg("gate"), nb::arg("up"), nb::arg("x"), exact("h"));
  m.def("embed", &embed, nb::arg("table"), exact("ids"), exact("y"));
  m.def("rms_norm", &rms_norm, nb::arg("pool"), exact("x"), exact("weight"), nb::arg("eps"), exact("y"));
  m.def("add_gated", &add_gated, nb::arg("pool"), exact("x"), exact("gate"), exact("y"));
  m.def("route", &route, nb::arg("pool"), exact("logits"), exact("ids"), exact("weights"));
  m.def("expert", &expert, nb::arg("pool"), nb::arg("layout"), exact("record"), nb::arg("x"), exact("tokens"),
        exact("weights"), exact("y"));
  m.def("experts", &experts, nb::arg("pool"), nb::arg("layout"), exact("records"), nb::arg("tokens"), nb::arg("x"),
        exact("y"));
  m.def("combine", &combine, nb::arg("pool"), exact("parts"), nb::arg("came"), exact("ids"), exact("weights"),
        exact("y"));
  m.def("rotation", &rotation, nb::arg("position"), exact("frequencies"), exact("cos"), exact("sin"));
}

}  // namespace moepack
