// Runs every kernel of the table that MOEPACK_ISA names on numbers from a fixed generator, and prints a digest of each
// result: a line is "what digest". Two instruction sets that agree bit for bit print the same lines.
//
// Inputs need integers and exact divisions only, so that they are the same on every machine.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

using namespace moepack;

namespace {

struct Generator {
  uint64_t state = 88172645463325252ull;
  uint32_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
  float number() { return static_cast<float>(static_cast<int32_t>(next()) >> 8) / 4194304.0f; }  // from -2 to 2
  std::vector<float> numbers(int64_t count) {
    std::vector<float> of(static_cast<size_t>(count));
    for (float& x : of) x = number();
    return of;
  }
  std::vector<uint8_t> bytes(int64_t count) {
    std::vector<uint8_t> of(static_cast<size_t>(count));
    for (uint8_t& x : of) x = static_cast<uint8_t>(next());
    return of;
  }
};

uint16_t bf16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

void show(const std::string& what, const void* from, size_t bytes) {
  uint64_t digest = 14695981039346656037ull;
  for (size_t i = 0; i < bytes; ++i) digest = (digest ^ static_cast<const uint8_t*>(from)[i]) * 1099511628211ull;
  std::printf("%s %016llx\n", what.c_str(), static_cast<unsigned long long>(digest));
}

template <typename T> void show(const std::string& what, const std::vector<T>& of) {
  show(what, of.data(), of.size() * sizeof(T));
}

struct KindOf {
  Kind kind;
  const char* name;
  int bits;
  std::vector<int64_t> groups;
};

const KindOf KINDS[] = {
    {Kind::affine2, "affine2", 2, {32, 64, 128}}, {Kind::affine3, "affine3", 3, {32, 64, 128}},
    {Kind::affine4, "affine4", 4, {32, 64, 128}}, {Kind::affine6, "affine6", 6, {32, 64, 128}},
    {Kind::affine8, "affine8", 8, {32, 64, 128}}, {Kind::bf16, "bf16", 16, {0}},
    {Kind::f16, "f16", 16, {0}},                  {Kind::f32, "f32", 32, {0}},
    {Kind::steps2, "steps2", 2, {16, 32}},        {Kind::steps3, "steps3", 3, {16, 32}},
    {Kind::books2, "books2", 2, {8, 16}},         {Kind::books3, "books3", 3, {8, 16}}};

bool is_affine(Kind kind) { return kind <= Kind::affine8; }
bool is_books(Kind kind) { return kind >= Kind::books2; }
bool is_float(Kind kind) { return kind >= Kind::bf16 && kind <= Kind::f32; }

// A matrix and what it points to. Arrays end where their numbers do: kernels read nothing behind them.
struct Stored {
  std::vector<uint8_t> data, scales, biases, grids, books;
  std::vector<float> levels;
  Matrix view;

  Stored(Generator& from, const KindOf& of, Scalar scalar, int64_t rows, int64_t cols, int64_t group) {
    data = from.bytes(rows * cols * of.bits / 8);
    view = {of.kind, scalar, rows, cols, group, cols * of.bits / 8, data.data(), nullptr, nullptr};
    if (is_float(of.kind)) fill(from, data, rows * cols, of.kind == Kind::bf16 ? Scalar::bf16 : of.kind == Kind::f16 ? Scalar::f16 : Scalar::f32);
    const int64_t parameters = is_affine(of.kind) ? rows * cols / group : rows;
    fill(from, scales, parameters, scalar), fill(from, biases, parameters, scalar);
    view.scales = scales.data(), view.biases = biases.data(), view.data = data.data();
    if (!is_affine(of.kind) && !is_float(of.kind)) add_grids(from, of, rows * cols / group);
  }

  static void fill(Generator& from, std::vector<uint8_t>& to, int64_t count, Scalar scalar) {
    to.assign(static_cast<size_t>(count * (scalar == Scalar::f32 ? 4 : 2)), 0);
    for (int64_t i = 0; i < count; ++i) {
      const float x = from.number();
      const uint16_t half = scalar == Scalar::bf16 ? bf16_of(x) : static_cast<uint16_t>(from.next() & 0xbbff);  // f16
      if (scalar == Scalar::f32) std::memcpy(to.data() + 4 * i, &x, 4);
      else std::memcpy(to.data() + 2 * i, &half, 2);
    }
  }

  void add_grids(Generator& from, const KindOf& of, int64_t groups) {
    const int64_t each = is_books(of.kind) ? 2 : 1, size = int64_t{1} << of.bits;
    grids = from.bytes(groups / each);
    books = from.bytes(16 * size);
    for (uint8_t& level : books) level = static_cast<uint8_t>(level < 1 ? 1 : level);
    levels = from.numbers(256 * each * size);
    for (int64_t i = 0; is_books(of.kind) && i < 512 * size; ++i) {
      const int64_t byte = i / size / 2, book = i / size % 2 ? byte >> 4 : byte & 15;
      levels[static_cast<size_t>(i)] = static_cast<float>(books[static_cast<size_t>(book * size + i % size)]) - 128.0f;
    }
    view.grids = grids.data(), view.levels = levels.data(), view.books = books.data();
  }
};

std::vector<uint8_t> round_rows(const std::vector<float>& x, int64_t cols, int64_t planes, Order order) {
  const int64_t rows = static_cast<int64_t>(x.size()) / cols;
  std::vector<uint8_t> to(static_cast<size_t>(rows * rounded_bytes(cols)));
  for (int64_t r = 0; planes > 0 && r < rows; ++r)
    kernels().round_row(x.data() + r * cols, cols, planes, order, to.data() + r * rounded_bytes(cols));
  return to;
}

void show_products(Generator& from, const std::string& name, const Matrix& a, const Matrix& b, int64_t tokens,
                   bool rounded) {
  const int64_t rows = a.rows;
  const std::vector<float> x = from.numbers(tokens * a.cols), weights = from.numbers(tokens);
  const Order order = tokens < kernels().fewest_in_panels(a.kind) ? Order::chunks : Order::lanes;
  const std::vector<uint8_t> round = round_rows(x, a.cols, kernels().planes(a.kind), order);
  const Rows activations = {x.data(), nullptr, tokens, a.cols, rounded ? round.data() : nullptr};
  std::vector<float> y(static_cast<size_t>(tokens * rows)), scratch(static_cast<size_t>(kernels().product_scratch(a)));
  std::vector<int32_t> index;
  for (int64_t t = 0; t < tokens; ++t) index.push_back(static_cast<int32_t>(tokens - 1 - t));
  const std::string what = name + " tokens=" + std::to_string(tokens) + (rounded ? " rounded " : " float ");
  kernels().matmul(a, activations, y.data(), rows, 0, rows, scratch.data());
  show(what + "matmul", y);
  kernels().accumulate(a, activations, index.data(), weights.data(), y.data(), rows, 0, rows, scratch.data());
  show(what + "accumulate", y);
  kernels().swiglu(a, b, activations, activations, y.data(), rows, 0, rows, scratch.data());
  show(what + "swiglu", y);
}

void show_kind(Generator& from, const KindOf& of, Scalar scalar, int64_t rows, int64_t cols, int64_t group) {
  const char* const scalars[] = {"bf16", "f16", "f32"};
  const std::string name = std::string(of.name) + "-g" + std::to_string(group) + " " +
                           scalars[static_cast<int>(scalar)] + " " + std::to_string(rows) + "x" + std::to_string(cols);
  const Stored a(from, of, scalar, rows, cols, group), b(from, of, scalar, rows, cols, group);
  std::vector<float> row(static_cast<size_t>(cols));
  kernels().row(a.view, rows - 1, row.data());
  show(name + " row", row);
  for (const int64_t tokens : {1, 2, 3, 5, 7, 29}) {
    show_products(from, name, a.view, b.view, tokens, false);
    if (kernels().planes(of.kind) > 0) show_products(from, name, a.view, b.view, tokens, true);
  }
}

void show_matrices(Generator& from) {
  for (const KindOf& of : KINDS)
    for (const int64_t group : of.groups)
      for (const int64_t cols : {384, 640, 1408}) show_kind(from, of, Scalar::bf16, 35, cols, group);
  for (const KindOf& of : KINDS)
    if (is_affine(of.kind))
      for (const Scalar scalar : {Scalar::f16, Scalar::f32}) show_kind(from, of, scalar, 17, 384, 64);
  for (const KindOf& of : KINDS)
    if (is_float(of.kind)) show_kind(from, of, Scalar::bf16, 5, 45, 0);
}

void show_rounding(Generator& from) {
  for (const int64_t planes : {1, 2, 4}) {
    std::vector<float> x = from.numbers(640);
    std::memset(x.data(), 0, 40 * sizeof(float));
    for (size_t i = 64; i < 96; ++i) x[i] *= 1e-30f;
    for (size_t i = 96; i < 128; ++i) x[i] *= 1e30f;
    for (const Order order : {Order::chunks, Order::lanes})
      show("round_row planes=" + std::to_string(planes) + (order == Order::lanes ? " lanes" : " chunks"),
           round_rows(x, 640, planes, order));
  }
}

void show_elementwise(Generator& from) {
  for (const int64_t count : {45, 512}) {
    const std::vector<float> x = from.numbers(count), weight = from.numbers(count);
    std::vector<float> y(x.size()), room(x.size()), shares(7);
    std::vector<int32_t> ids(7);
    const std::string size = std::string(" ").append(std::to_string(count));
    kernels().rms_norm(x.data(), weight.data(), 1e-6f, y.data(), count), show("rms_norm" + size, y);
    kernels().add_share(x.data(), 0.3f, y.data(), count), show("add_share" + size, y);
    kernels().add_gated(x.data(), 0.7f, y.data(), count), show("add_gated" + size, y);
    kernels().route(x.data(), count, 7, ids.data(), shares.data(), room.data());
    show("route ids" + size, ids), show("route weights" + size, shares);
  }
}

void show_attention(Generator& from, int64_t tokens, int64_t position) {
  const AttentionShape s = {6, 2, 72, 32, 1e-6f};
  const int64_t width = s.num_kv_heads * s.head_dim, capacity = position + tokens + 64;
  const int64_t tiles = (tokens * s.num_heads / s.num_kv_heads + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
  const auto query = from.numbers(tokens * s.num_heads * 2 * s.head_dim), key = from.numbers(tokens * width);
  const auto value = from.numbers(tokens * width), qn = from.numbers(s.head_dim), kn = from.numbers(s.head_dim);
  const auto cos = from.numbers(tokens * s.rotary_dims / 2), sin = from.numbers(tokens * s.rotary_dims / 2);
  std::vector<float> keys = from.numbers(capacity * width), values = from.numbers(capacity * width);
  std::vector<float> out(static_cast<size_t>(tokens * s.num_heads * s.head_dim));
  const Attention a = {s,         tokens,    position,   tiles,      query.data(), key.data(),    value.data(), qn.data(),
                       kn.data(), cos.data(), sin.data(), keys.data(), values.data(), out.data()};
  std::vector<float> queries(static_cast<size_t>(s.head_dim * 16)), scores(ATTENTION_BLOCK * 16);
  std::vector<float> partial(static_cast<size_t>((s.head_dim + 2) * 16)), sum(partial.size());
  for (int64_t t = 0; t < tokens; ++t) kernels().attention_cache(a, t);
  for (int64_t tile = 0; tile < tiles * s.num_kv_heads; ++tile) {
    const int64_t first = tile % tiles * 16, rows = tokens * 3 - first < 16 ? tokens * 3 - first : 16;
    const int64_t end = position + (first + rows - 1) / 3 + 1;
    kernels().attention_start(a, tile, queries.data(), sum.data());
    for (int64_t block = 0; block * ATTENTION_BLOCK < end; ++block) {
      kernels().attention_block(a, tile, block, queries.data(), scores.data(), partial.data());
      kernels().attention_join(a, partial.data(), sum.data());
    }
    kernels().attention_finish(a, tile, sum.data());
  }
  const std::string name = "attention " + std::to_string(tokens) + " at " + std::to_string(position);
  show(name + " keys", keys), show(name + " out", out);
}

// The rates of decay need the C library's exp and log1p, which differ by machine: they are replaced before the passes.
void show_delta(Generator& from, int64_t tokens) {
  const DeltaShape s = {2, 4, 48, 40, 4, 1e-6f};
  const int64_t heads = s.num_value_heads, width = heads * s.value_head_dim, of_keys = 2 * s.num_key_heads;
  const int64_t channels = of_keys * s.key_head_dim + width;
  const auto mixed = from.numbers(tokens * channels), gate = from.numbers(tokens * width);
  const auto beta = from.numbers(tokens * heads), decay = from.numbers(tokens * heads);
  const auto conv = from.numbers(4 * channels), log_decay = from.numbers(heads), bias = from.numbers(heads);
  const auto norm = from.numbers(s.value_head_dim);
  std::vector<float> convolved(static_cast<size_t>(tokens * channels)), keeps(beta.size()), learns(beta.size());
  std::vector<float> before = from.numbers(3 * channels), state = from.numbers(heads * s.key_head_dim * s.value_head_dim);
  std::vector<float> out(static_cast<size_t>(tokens * width)), room(DELTA_COLUMNS * 48);
  const Delta d = {s,           tokens,           channels,    mixed.data(),     gate.data(),  beta.data(),   decay.data(),
                   conv.data(), log_decay.data(), bias.data(), norm.data(),      convolved.data(), keeps.data(),
                   learns.data(), before.data(),  state.data(), out.data()};
  kernels().delta_inputs(d, 0, of_keys + heads);
  const std::string name = "delta " + std::to_string(tokens);
  show(name + " convolved", convolved), show(name + " library keeps", keeps), show(name + " library learns", learns);
  for (float& keep : keeps) keep = (from.number() + 2.0f) / 4.0f;
  for (float& learn : learns) learn = (from.number() + 2.0f) / 4.0f;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t slice = 0; slice * DELTA_COLUMNS < s.value_head_dim; ++slice)
      kernels().delta_slice(d, head, slice, room.data());
  kernels().delta_shift(d);
  show(name + " passes", out), show(name + " state", state), show(name + " shift", before);
  for (int64_t row = 0; row < tokens * heads; ++row) kernels().delta_outputs(d, row);
  show(name + " outputs", out);
}

}  // namespace

int main() {
  Generator from;
  std::printf("isa %s\n", kernels().name);
  show_rounding(from), show_elementwise(from), show_matrices(from);
  show_attention(from, 1, 300), show_attention(from, 21, 250);
  show_delta(from, 1), show_delta(from, 9);
}
