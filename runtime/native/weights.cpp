#include "weights.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

struct Known {
  int64_t bits, grids_per_byte;
  Kind kind;
};
constexpr Known KNOWN[] = {{2, 0, Kind::affine2}, {3, 0, Kind::affine3}, {4, 0, Kind::affine4},
                           {6, 0, Kind::affine6}, {8, 0, Kind::affine8}, {2, 1, Kind::steps2},
                           {3, 1, Kind::steps3},  {2, 2, Kind::books2},  {3, 2, Kind::books3}};

Kind kind_of(int64_t bits, int64_t grids_per_byte) {
  for (const Known& known : KNOWN)
    if (known.bits == bits && known.grids_per_byte == grids_per_byte) return known.kind;
  throw std::invalid_argument("no kernel for codes of " + std::to_string(bits) + " bits");
}

Coding affine_coding(int64_t bits, int64_t group) { return {kind_of(bits, 0), bits, group}; }

Coding grid_coding(const Levels& levels, int64_t group) {
  require(group * levels.grids_per_byte == 16 || group * levels.grids_per_byte == 32, "no kernel for such groups");
  return {kind_of(levels.bits, levels.grids_per_byte), levels.bits, group, levels.grids_per_byte};
}

int64_t bytes(const Bytes& array) { return static_cast<int64_t>(array.size()); }

// All arrays arrive as flat bytes: numpy has no bf16 of its own, and shapes are stated anyway.
HeldMatrix float_matrix(Bytes data, const std::string& dtype, int64_t rows, int64_t cols) {
  const int64_t row_bytes = cols * size_of(scalar(dtype));
  require(rows > 0 && cols > 0 && bytes(data) == rows * row_bytes, "matrix bytes do not fit its shape");
  return {{float_kind(scalar(dtype)), scalar(dtype), rows, cols, 0, row_bytes, data.data(), nullptr, nullptr},
          {nb::cast(data)}};
}

HeldMatrix affine_matrix(Bytes codes, Bytes scales, Bytes biases, const std::string& dtype, int64_t bits, int64_t group,
                         int64_t rows, int64_t cols) {
  const Coding c = affine_coding(bits, group);
  c.require_fit(rows, cols);
  const int64_t parameters = c.scale_count(rows, cols) * size_of(scalar(dtype));
  require(bytes(codes) == rows * c.row_bytes(cols), "code bytes do not fit the shape");
  require(bytes(scales) == parameters && bytes(biases) == parameters, "scale bytes do not fit");
  return {{c.kind, scalar(dtype), rows, cols, group, c.row_bytes(cols), codes.data(), scales.data(), biases.data()},
          {nb::cast(codes), nb::cast(scales), nb::cast(biases)}};
}

HeldMatrix grid_matrix(Bytes codes, Bytes grids, Bytes scales, nb::object levels, int64_t group, int64_t rows,
                       int64_t cols) {
  const Levels& held = nb::cast<const Levels&>(levels);
  const Coding c = grid_coding(held, group);
  c.require_fit(rows, cols);
  require(bytes(codes) == rows * c.row_bytes(cols), "code bytes do not fit the shape");
  require(bytes(grids) == c.grid_bytes(rows, cols), "grid bytes do not fit the shape");
  require(bytes(scales) == c.scale_count(rows, cols) * 2, "scale bytes do not fit");
  return {{c.kind, Scalar::bf16, rows, cols, group, c.row_bytes(cols), codes.data(), scales.data(), nullptr,
           grids.data(), held.data(), held.books()},
          {nb::cast(codes), nb::cast(grids), nb::cast(scales), levels}};
}

Projection affine_projection(int64_t bits, int64_t group, int64_t codes, int64_t scales, int64_t biases) {
  return {affine_coding(bits, group), codes, scales, biases, nullptr, nb::none()};
}

Projection grid_projection(nb::object levels, int64_t group, int64_t codes, int64_t grids, int64_t scales) {
  const Levels& held = nb::cast<const Levels&>(levels);
  return {grid_coding(held, group), codes, scales, grids, &held, levels};
}

}  // namespace

Levels::Levels(Array<const int16_t, 2> table) {
  const int64_t grids = extent(table, 0), size = extent(table, 1);
  require((grids == 16 || grids == 256) && (size == 4 || size == 8), "a table has 16 or 256 grids of 4 or 8 levels");
  bits = size == 4 ? 2 : 3, grids_per_byte = grids == 16 ? 2 : 1;
  const int64_t entry = grids_per_byte * size;
  lines_.resize(static_cast<size_t>(256 * entry / 16));
  float* to = lines_.data()->floats;
  for (int64_t byte = 0; byte < 256; ++byte)
    for (int64_t i = 0; i < entry; ++i) {
      const int64_t grid = grids_per_byte == 1 ? byte : byte >> 4 * (i / size) & 15;
      *to++ = table.data()[grid * size + i % size];
    }
  for (int64_t i = 0; grids == 16 && i < grids * size; ++i) {
    require(table.data()[i] >= -127 && table.data()[i] <= 127, "a codebook's levels are bytes");
    books_.push_back(static_cast<uint8_t>(table.data()[i] + 128));
  }
}

void Coding::require_fit(int64_t rows, int64_t cols) const {
  require(rows > 0 && cols > 0, "a matrix has rows and columns");
  if (grids_per_byte) return require(cols % 32 == 0, "columns do not fill whole words");
  require(group > 0 && cols % group == 0 && group % 32 == 0, "columns do not divide into whole groups");
}

RecordViews::RecordViews(int64_t hidden_, int64_t intermediate_, std::vector<Projection> places, int64_t size_)
    : hidden(hidden_), intermediate(intermediate_), size(size_), projections_(std::move(places)) {
  require(projections_.size() == 3, "an expert has three projections: gate, up, down");
  const auto inside = [&](int64_t offset, int64_t bytes) { return offset >= 0 && offset + bytes <= size; };
  for (size_t i = 0; i < 3; ++i) {
    const Projection& p = projections_[i];
    const auto [rows, cols] = shape(i);
    p.coding.require_fit(rows, cols);
    const int64_t scales = p.coding.scale_count(rows, cols) * 2;
    require(inside(p.codes, rows * p.coding.row_bytes(cols)) && inside(p.scales, scales) &&
                inside(p.extra, p.levels ? p.coding.grid_bytes(rows, cols) : scales),
            "a component lies outside the record");
  }
}

std::pair<int64_t, int64_t> RecordViews::shape(size_t projection) const {
  return projection == 2 ? std::pair(hidden, intermediate) : std::pair(intermediate, hidden);
}

Expert RecordViews::expert(const uint8_t* record) const {
  const auto matrix = [&](size_t i) -> Matrix {
    const Projection& p = projections_[i];
    const auto [rows, cols] = shape(i);
    const uint8_t* const extra = record + p.extra;
    return {p.coding.kind,     Scalar::bf16,      rows, cols, p.coding.group, p.coding.row_bytes(cols),
            record + p.codes,  record + p.scales, p.levels ? nullptr : extra, p.levels ? extra : nullptr,
            p.levels ? p.levels->data() : nullptr, p.levels ? p.levels->books() : nullptr};
  };
  return {matrix(0), matrix(1), matrix(2)};
}

void bind_weights(nb::module_& m) {
  nb::class_<HeldMatrix>(m, "Matrix")
      .def_prop_ro("rows", [](const HeldMatrix& h) { return h.view.rows; })
      .def_prop_ro("cols", [](const HeldMatrix& h) { return h.view.cols; })
      .def("exact", [](HeldMatrix h) { return h.precision = Precision::exact, h; });
  m.def("float_matrix", &float_matrix, exact("data"), nb::arg("dtype"), nb::arg("rows"), nb::arg("cols"));
  m.def("affine_matrix", &affine_matrix, exact("codes"), exact("scales"), exact("biases"), nb::arg("dtype"),
        nb::arg("bits"), nb::arg("group"), nb::arg("rows"), nb::arg("cols"));
  nb::class_<Levels>(m, "Levels").def(nb::init<Array<const int16_t, 2>>(), exact("table"));
  m.def("grid_matrix", &grid_matrix, exact("codes"), exact("grids"), exact("scales"), nb::arg("levels"),
        nb::arg("group"), nb::arg("rows"), nb::arg("cols"));
  nb::class_<Projection>(m, "Projection");
  m.def("affine_projection", &affine_projection, nb::arg("bits"), nb::arg("group"), nb::arg("codes"),
        nb::arg("scales"), nb::arg("biases"));
  m.def("grid_projection", &grid_projection, nb::arg("levels"), nb::arg("group"), nb::arg("codes"), nb::arg("grids"),
        nb::arg("scales"));
  nb::class_<RecordViews>(m, "RecordViews")
      .def(nb::init<int64_t, int64_t, std::vector<Projection>, int64_t>(), nb::arg("hidden"), nb::arg("intermediate"),
           nb::arg("projections"), nb::arg("size"))
      .def_ro("hidden", &RecordViews::hidden);
}

}  // namespace moepack
