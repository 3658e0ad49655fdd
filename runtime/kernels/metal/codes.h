// Stored matrices: what their codes mean (FORMAT.md, section 2), piece by piece. Nothing here knows how products are
// divided among threads.
//
// A piece is sixteen columns of a row: whole words of codes in every format, and never more than one group of an affine
// matrix. Each format has
//   place(lane, i)   which column of a tile (of LANES pieces) is the i-th of a lane
//   product(...)     the sum of a lane's products in a tile, of which `total` is the sum of the inputs
//   weights(...)     the weights of a piece, left of the row's scale
//   scale(...)       what the sums or weights of a row still have to be multiplied by
// Affine products have the form scale * (codes . x) + bias * (sum of x): two multiply-adds for a piece, not for a code.

#include "numbers.h"
#include "books.h"

constant constexpr uint PIECE = 16;
constant constexpr uint TILE = LANES * PIECE;

// Where the parts of a matrix [rows, cols] lie, in bytes from the start of a buffer. Parts that its format lacks are 0.
// Host: struct "<4Q2I".
struct Matrix {
  ulong weight, scales, biases, grids;
  uint rows, cols;
};

// The same as pointers.
struct Parts {
  device const uchar *weight, *scales, *biases, *grids;
  uint rows, cols;
};

inline Parts parts_of(device const uchar* buffer, constant Matrix& m) {
  return {buffer + m.weight, buffer + m.scales, buffer + m.biases, buffer + m.grids, m.rows, m.cols};
}

struct Bf16 {
  typedef ushort Stored;
  static float widen(ushort bits) { return as_type<float>(uint(bits) << 16); }
};
struct F16 {
  typedef half Stored;
  static float widen(half value) { return float(value); }
};
struct F32 {
  typedef float Stored;
  static float widen(float value) { return value; }
};

template <typename Scalar> inline float scalar_at(device const uchar* from, ulong index) {
  return Scalar::widen(((device const typename Scalar::Stored*)from)[index]);
}

// Codes are read by words, of which a piece has a whole number: 48 bits are three half-words.
template <int BITS> struct Packing {
  typedef uint Word;
};
template <> struct Packing<3> {
  typedef ushort Word;
};

// The codes of a piece.
template <int BITS> struct Codes {
  typedef typename Packing<BITS>::Word Word;
  Word words[PIECE * BITS / (8 * sizeof(Word))];

  Codes(thread const Parts& m, uint row, uint piece) {
    const ulong first = (ulong(row) * m.cols / PIECE + piece) * (PIECE * BITS / 8);
    for (uint w = 0; w < sizeof(words) / sizeof(Word); ++w) words[w] = ((device const Word*)(m.weight + first))[w];
  }

  uint operator[](uint c) const {
    const uint size = 8 * sizeof(Word), bit = c * BITS, word = bit / size, shift = bit % size;
    uint code = uint(words[word]) >> shift;
    if (shift + BITS > size) code |= uint(words[word + 1]) << (size - shift);
    return code & ((1 << BITS) - 1);
  }

  float dot(thread const float* x) const {
    float sum = 0.0f;
    for (uint i = 0; i < PIECE; ++i) sum = fma(float((*this)[i]), x[i], sum);
    return sum;
  }
};

// What all formats with codes have in common: a lane takes a piece of a tile.
struct Pieces {
  static uint place(uint lane, uint i) { return lane * PIECE + i; }
};

// affine{BITS}-g{GROUP}: weight = code * scale + bias, with a scale and a bias for each group.
template <int BITS, int GROUP, typename Scalar> struct Affine : Pieces {
  static float product(thread const Parts& m, uint row, uint tile, uint lane, thread const float* x, float total) {
    const uint piece = tile / PIECE + lane;
    if (piece * PIECE >= m.cols) return 0.0f;
    const Codes<BITS> codes(m, row, piece);
    const ulong group = group_of(m, row, piece);
    const float scale = scalar_at<Scalar>(m.scales, group), bias = scalar_at<Scalar>(m.biases, group);
    return fma(scale, codes.dot(x), bias * total);
  }

  static void weights(thread const Parts& m, uint row, uint piece, thread float* to) {
    const Codes<BITS> codes(m, row, piece);
    const ulong group = group_of(m, row, piece);
    const float scale = scalar_at<Scalar>(m.scales, group), bias = scalar_at<Scalar>(m.biases, group);
    for (uint i = 0; i < PIECE; ++i) to[i] = fma(float(codes[i]), scale, bias);
  }

  static float scale(thread const Parts&, uint) { return 1.0f; }

 private:
  static ulong group_of(thread const Parts& m, uint row, uint piece) {
    return ulong(row) * (m.cols / GROUP) + piece * PIECE / GROUP;
  }
};

// affine{BITS}-g{GROUP}s: weight = step * (8 code - offset) * scale of the row; a group's byte holds its step and zero.
template <int BITS, int GROUP> struct Steps : Pieces {
  static float product(thread const Parts& m, uint row, uint tile, uint lane, thread const float* x, float total) {
    const uint piece = tile / PIECE + lane;
    if (piece * PIECE >= m.cols) return 0.0f;
    const Codes<BITS> codes(m, row, piece);
    const uint grid = grid_of(m, row, piece);
    return step(grid) * fma(8.0f, codes.dot(x), -offset(grid) * total);
  }

  static void weights(thread const Parts& m, uint row, uint piece, thread float* to) {
    const Codes<BITS> codes(m, row, piece);
    const uint grid = grid_of(m, row, piece);
    for (uint i = 0; i < PIECE; ++i) to[i] = step(grid) * (8.0f * float(codes[i]) - offset(grid));
  }

  static float scale(thread const Parts& m, uint row) { return scalar_at<Bf16>(m.scales, row); }

 private:
  static uint grid_of(thread const Parts& m, uint row, uint piece) {
    return m.grids[ulong(row) * (m.cols / GROUP) + piece * PIECE / GROUP];
  }
  static float step(uint grid) { return float(grid & 15); }
  static float offset(uint grid) { return float(BITS == 2 ? 4 + (grid >> 4) : 12 + 2 * (grid >> 4)); }
};

// The levels of a group's book. Books 8 to 15 are books 0 to 7 from behind, negated.
template <int BITS, int GROUP> struct Book {
  char4 levels[1 << (BITS - 2)];
  uint flip;
  float sign;

  Book(uint grid) {
    for (uint part = 0; part < (1 << (BITS - 2)); ++part) levels[part] = BookTable<BITS, GROUP>::levels(grid & 7, part);
    flip = grid & 8 ? (1 << BITS) - 1 : 0;
    sign = grid & 8 ? -1.0f : 1.0f;
  }

  // The level of a code, without the sign.
  float operator[](uint code) const {
    const uint at = code ^ flip, four = as_type<uint>(BITS == 3 && at > 3 ? levels[BITS - 2] : levels[0]);
    return float(as_type<int>(four << (24 - 8 * (at & 3))) >> 24);
  }
};

// book{BITS}-g{GROUP}: weight = level * scale of the row; of a byte, the low half names the book of the earlier group.
template <int BITS, int GROUP> struct Books : Pieces {
  static float product(thread const Parts& m, uint row, uint tile, uint lane, thread const float* x, float) {
    const uint piece = tile / PIECE + lane;
    if (piece * PIECE >= m.cols) return 0.0f;
    const Codes<BITS> codes(m, row, piece);
    float sum = 0.0f;
    for (uint first = 0; first < PIECE; first += GROUP) {
      const Book<BITS, GROUP> book(grid_of(m, row, piece * PIECE + first));
      float part = 0.0f;
      for (uint i = first; i < first + GROUP; ++i) part = fma(book[codes[i]], x[i], part);
      sum = fma(book.sign, part, sum);
    }
    return sum;
  }

  static void weights(thread const Parts& m, uint row, uint piece, thread float* to) {
    const Codes<BITS> codes(m, row, piece);
    for (uint first = 0; first < PIECE; first += GROUP) {
      const Book<BITS, GROUP> book(grid_of(m, row, piece * PIECE + first));
      for (uint i = first; i < first + GROUP; ++i) to[i] = book.sign * book[codes[i]];
    }
  }

  static float scale(thread const Parts& m, uint row) { return scalar_at<Bf16>(m.scales, row); }

 private:
  static uint grid_of(thread const Parts& m, uint row, uint column) {
    const uint group = column / GROUP;
    return m.grids[ulong(row) * (m.cols / (2 * GROUP)) + group / 2] >> (4 * (group % 2)) & 15;
  }
};

// A matrix of floats, of any width: lanes take neighbouring columns, so that their reads are one.
template <typename Scalar> struct Floats {
  static uint place(uint lane, uint i) { return i * LANES + lane; }

  static float product(thread const Parts& m, uint row, uint tile, uint lane, thread const float* x, float) {
    float sum = 0.0f;
    for (uint i = 0; i < PIECE; ++i) {
      const uint column = tile + place(lane, i);
      if (column < m.cols) sum = fma(scalar_at<Scalar>(m.weight, ulong(row) * m.cols + column), x[i], sum);
    }
    return sum;
  }

  static void weights(thread const Parts& m, uint row, uint piece, thread float* to) {
    for (uint i = 0; i < PIECE; ++i) {
      const uint column = piece * PIECE + i;
      to[i] = column < m.cols ? scalar_at<Scalar>(m.weight, ulong(row) * m.cols + column) : 0.0f;
    }
  }

  static float scale(thread const Parts&, uint) { return 1.0f; }
};
