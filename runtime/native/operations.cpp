// The kernels as Python functions: shapes are checked, the GIL is released, and the pool shares out the rows.
#include "operations.h"

#include <cmath>
#include <vector>

#include "pool.h"
#include "weights.h"

namespace moepack {

namespace {

using In1 = Array<const float, 1>;
using In2 = Array<const float, 2>;
using Out1 = Array<float, 1>;
using Out2 = Array<float, 2>;

constexpr int64_t ROW_GRAIN = 16;          // the kernels' block of rows
constexpr int64_t LEAST_WORK = 64 * 1024;  // multiplications worth handing to another thread

// Rows per piece: small enough to even out threads of unequal speed, large enough to be worth handing out.
int64_t grain_of(const Pool& pool, int64_t rows, int64_t work_per_row) {
  const int64_t even = rows / (pool.threads() * 8), worth = LEAST_WORK / (work_per_row + 1) + 1;
  return ((even > worth ? even : worth) + ROW_GRAIN - 1) / ROW_GRAIN * ROW_GRAIN;
}

Rows all_rows(const In2& x) { return {x.data(), nullptr, extent(x, 0), extent(x, 1)}; }

void matmul(Pool& pool, const HeldMatrix& matrix, In2 x, Out2 y) {
  const Matrix& m = matrix.view;
  require(extent(x, 1) == m.cols && extent(y, 1) == m.rows && extent(x, 0) == extent(y, 0),
          "matmul: shapes do not fit");
  nb::gil_scoped_release release;
  pool.run(m.rows, grain_of(pool, m.rows, m.cols * extent(x, 0)),
           [&](int64_t first, int64_t last, int) { kernels().matmul(m, all_rows(x), y.data(), m.rows, first, last); });
}

void swiglu(Pool& pool, const HeldMatrix& gate, const HeldMatrix& up, In2 x, Out2 h) {
  const Matrix &g = gate.view, &u = up.view;
  require(g.rows == u.rows && g.cols == u.cols && extent(x, 1) == g.cols && extent(h, 1) == g.rows &&
              extent(x, 0) == extent(h, 0),
          "swiglu: shapes do not fit");
  nb::gil_scoped_release release;
  pool.run(g.rows, grain_of(pool, g.rows, 2 * g.cols * extent(x, 0)), [&](int64_t first, int64_t last, int) {
    kernels().swiglu(g, u, all_rows(x), h.data(), g.rows, first, last);
  });
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
void expert(Pool& pool, const RecordViews& layout, Bytes record, In2 x, Array<const int32_t, 1> tokens, In1 weights,
            Out2 y) {
  const int64_t count = extent(tokens, 0), wide = layout.intermediate;
  require(static_cast<int64_t>(record.size()) >= layout.size, "expert: the record is too short");
  require(extent(x, 1) == layout.hidden && extent(y, 1) == layout.hidden && extent(x, 0) == extent(y, 0) &&
              extent(weights, 0) == count,
          "expert: shapes do not fit");
  for (int64_t i = 0; i < count; ++i)
    require(tokens.data()[i] >= 0 && tokens.data()[i] < extent(x, 0), "expert: no such token");
  nb::gil_scoped_release release;
  const Expert e = layout.expert(record.data());
  std::vector<float> hidden(static_cast<size_t>(count * wide));
  pool.run(wide, grain_of(pool, wide, 2 * layout.hidden * count), [&](int64_t first, int64_t last, int) {
    kernels().swiglu(e.gate, e.up, {x.data(), tokens.data(), count, layout.hidden}, hidden.data(), wide, first, last);
  });
  pool.run(layout.hidden, grain_of(pool, layout.hidden, wide * count), [&](int64_t first, int64_t last, int) {
    kernels().accumulate(e.down, {hidden.data(), nullptr, count, wide}, tokens.data(), weights.data(), y.data(),
                         layout.hidden, first, last);
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
  m.def("matmul", &matmul, nb::arg("pool"), nb::arg("matrix"), exact("x"), exact("y"));
  m.def("swiglu", &swiglu, nb::arg("pool"), nb::arg("gate"), nb::arg("up"), exact("x"), exact("h"));
  m.def("embed", &embed, nb::arg("table"), exact("ids"), exact("y"));
  m.def("rms_norm", &rms_norm, nb::arg("pool"), exact("x"), exact("weight"), nb::arg("eps"), exact("y"));
  m.def("add_gated", &add_gated, nb::arg("pool"), exact("x"), exact("gate"), exact("y"));
  m.def("route", &route, nb::arg("pool"), exact("logits"), exact("ids"), exact("weights"));
  m.def("expert", &expert, nb::arg("pool"), nb::arg("layout"), exact("record"), exact("x"), exact("tokens"), exact("weights"), exact("y"));
  m.def("rotation", &rotation, nb::arg("position"), exact("frequencies"), exact("cos"), exact("sin"));
}

}  // namespace moepack
