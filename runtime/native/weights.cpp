#include "weights.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

namespace moepack {

namespace {

Scalar scalar(const std::string& dtype) {
  if (dtype == "BF16") return Scalar::bf16;
  if (dtype == "F16") return Scalar::f16;
  if (dtype == "F32") return Scalar::f32;
  throw std::invalid_argument("a stored scalar is BF16, F16 or F32, not " + dtype);
}

int64_t size_of(Scalar s) { return s == Scalar::f32 ? 4 : 2; }

Kind float_kind(Scalar s) { return s == Scalar::bf16 ? Kind::bf16 : s == Scalar::f16 ? Kind::f16 : Kind::f32; }

// All arrays arrive as flat bytes: numpy has no bf16 of its own, and shapes are stated anyway.
HeldMatrix float_matrix(Bytes data, const std::string& dtype, int64_t rows, int64_t cols) {
  const int64_t row_bytes = cols * size_of(scalar(dtype));
  require(rows > 0 && cols > 0 && static_cast<int64_t>(data.size()) == rows * row_bytes,
          "matrix bytes do not fit its shape");
  return {{float_kind(scalar(dtype)), scalar(dtype), rows, cols, 0, row_bytes, data.data(), nullptr, nullptr},
          nb::cast(data),
          nb::none(),
          nb::none()};
}

HeldMatrix affine_matrix(Bytes codes, Bytes scales, Bytes biases, const std::string& dtype, int64_t bits, int64_t group,
                         int64_t rows, int64_t cols) {
  require(rows > 0 && cols > 0 && group > 0 && cols % group == 0 && group % 32 == 0,
          "columns do not divide into whole groups");
  const int64_t parameters = rows * (cols / group) * size_of(scalar(dtype));
  require(static_cast<int64_t>(codes.size()) == rows * cols * bits / 8, "code bytes do not fit the shape");
  require(static_cast<int64_t>(scales.size()) == parameters && scales.size() == biases.size(),
          "scale bytes do not fit");
  return {{affine_kind(bits), scalar(dtype), rows, cols, group, cols * bits / 8, codes.data(), scales.data(),
           biases.data()},
          nb::cast(codes),
          nb::cast(scales),
          nb::cast(biases)};
}

using Offsets = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

std::vector<Projection> projections(const std::vector<Offsets>& offsets) {
  std::vector<Projection> result;
  for (const auto& [bits, group, codes, scales, biases] : offsets)
    result.push_back({bits, group, codes, scales, biases});
  return result;
}

}  // namespace

Kind affine_kind(int64_t bits) {
  switch (bits) {
    case 2: return Kind::affine2;
    case 3: return Kind::affine3;
    case 4: return Kind::affine4;
    case 6: return Kind::affine6;
    case 8: return Kind::affine8;
  }
  throw std::invalid_argument("no kernel for codes of " + std::to_string(bits) + " bits");
}

RecordViews::RecordViews(int64_t hidden_, int64_t intermediate_, std::vector<Projection> places, int64_t size_)
    : hidden(hidden_), intermediate(intermediate_), size(size_), projections_(std::move(places)) {
  require(projections_.size() == 3, "an expert has three projections: gate, up, down");
  for (size_t i = 0; i < 3; ++i) {
    const Projection& p = projections_[i];
    const int64_t rows = i == 2 ? hidden : intermediate, cols = i == 2 ? intermediate : hidden;
    require(p.group > 0 && p.group % 32 == 0 && cols % p.group == 0, "columns do not divide into whole groups");
    const int64_t parameters = rows * (cols / p.group) * 2;
    require(affine_kind(p.bits) <= Kind::affine8 && p.codes >= 0 && p.codes + rows * cols * p.bits / 8 <= size &&
                p.scales >= 0 && p.scales + parameters <= size && p.biases >= 0 && p.biases + parameters <= size,
            "a component lies outside the record");
  }
}

Expert RecordViews::expert(const uint8_t* record) const {
  const auto matrix = [&](size_t i) -> Matrix {
    const Projection& p = projections_[i];
    const int64_t rows = i == 2 ? hidden : intermediate, cols = i == 2 ? intermediate : hidden;
    return {affine_kind(p.bits), Scalar::bf16,     rows, cols, p.group, cols * p.bits / 8, record + p.codes,
            record + p.scales,   record + p.biases};
  };
  return {matrix(0), matrix(1), matrix(2)};
}

void bind_weights(nb::module_& m) {
  nb::class_<HeldMatrix>(m, "Matrix")
      .def_prop_ro("rows", [](const HeldMatrix& h) { return h.view.rows; })
      .def_prop_ro("cols", [](const HeldMatrix& h) { return h.view.cols; });
  m.def("float_matrix", &float_matrix, exact("data"), nb::arg("dtype"), nb::arg("rows"), nb::arg("cols"));
  m.def("affine_matrix", &affine_matrix, exact("codes"), exact("scales"), exact("biases"), nb::arg("dtype"),
        nb::arg("bits"), nb::arg("group"), nb::arg("rows"), nb::arg("cols"));
  nb::class_<RecordViews>(m, "RecordViews")
      .def(
          "__init__",
          [](RecordViews* self, int64_t hidden, int64_t intermediate, const std::vector<Offsets>& offsets,
             int64_t size) { new (self) RecordViews(hidden, intermediate, projections(offsets), size); },
          nb::arg("hidden"), nb::arg("intermediate"), nb::arg("projections"), nb::arg("size"));
}

}  // namespace moepack
