"""Mutants of stored matrices' codes, and of embeddings."""

from extended.mutants.mutant import Kind, of

CODES = ("tests/metal/test_codes.py",)
PRODUCTS = ("tests/metal/test_matvec.py::test_products_of_one_input_with_several_matrices",)
EMBEDDINGS = ("tests/metal/test_router.py::test_embeddings_are_rows_of_the_table",)

_codes = of("runtime/kernels/metal/codes.h", CODES)
_product = of("runtime/kernels/metal/codes.h", PRODUCTS)
_embedding = of("runtime/kernels/metal/embedding.metal", EMBEDDINGS)

MUTANTS = [
    _codes(
        "scales and biases change places",
        Kind.PLACE,
        "buffer + m.scales, buffer + m.biases",
        "buffer + m.biases, buffer + m.scales",
    ),
    _codes(
        "pieces lie twice as far apart",
        Kind.STRIDE,
        "/ PIECE + piece) * (PIECE * BITS / 8)",
        "/ PIECE + piece) * (PIECE * BITS / 4)",
    ),
    _codes(
        "rows of codes overlap by a piece",
        Kind.STRIDE,
        "ulong(row) * m.cols / PIECE + piece",
        "ulong(row) * (m.cols / PIECE - 1) + piece",
    ),
    _codes("codes across words miss by a bit", Kind.BY_ONE, "<< (size - shift);", "<< (size - shift - 1);"),
    _codes("a code's mask has a bit too many", Kind.BY_ONE, "code & ((1 << BITS) - 1)", "code & ((2 << BITS) - 1)"),
    _codes(
        "affine groups are one off",
        Kind.BY_ONE,
        "return ulong(row) * (m.cols / GROUP) + piece * PIECE / GROUP;\n  }\n};\n\n// affine{BITS}-g{GROUP}s",
        "return ulong(row) * (m.cols / GROUP) + piece * PIECE / GROUP + 1;\n  }\n};\n\n// affine{BITS}-g{GROUP}s",
    ),
    _codes(
        "grids of steps have the stride of pieces",
        Kind.STRIDE,
        "m.grids[ulong(row) * (m.cols / GROUP)",
        "m.grids[ulong(row) * (m.cols / PIECE)",
    ),
    _codes("three bits have two bits' offset", Kind.OPERATION, "12 + 2 * (grid >> 4)", "12 + (grid >> 4)"),
    _codes("a step of five bits", Kind.OPERATION, "float(grid & 15)", "float(grid & 31)"),
    _codes("a book from behind is not negated", Kind.OPERATION, "grid & 8 ? -1.0f : 1.0f", "1.0f"),
    _codes(
        "a book from behind begins one early",
        Kind.BY_ONE,
        "grid & 8 ? (1 << BITS) - 1 : 0",
        "grid & 8 ? (1 << BITS) - 2 : 0",
    ),
    _codes("the fourth level is looked for among the later", Kind.BY_ONE, "BITS == 3 && at > 3", "BITS == 3 && at > 2"),
    _codes(
        "the earlier group's book is in the high half",
        Kind.PLACE,
        ">> (4 * (group % 2)) & 15",
        ">> (4 - 4 * (group % 2)) & 15",
    ),
    _codes(
        "books of a row lie twice as far apart",
        Kind.STRIDE,
        "(m.cols / (2 * GROUP)) + group / 2",
        "(m.cols / GROUP) + group / 2",
    ),
    _codes(
        "floats past a row's end",
        Kind.GUARD,
        "column < m.cols ? scalar_at<Scalar>(m.weight, ulong(row) * m.cols + column) : 0.0f",
        "scalar_at<Scalar>(m.weight, ulong(row) * m.cols + column)",
    ),
    _product(
        "a lane takes columns that are not its piece",
        Kind.STRIDE,
        "return lane * PIECE + i;",
        "return i * LANES + lane;",
    ),
    _product(
        "an affine product reads the piece past a row's end",
        Kind.BY_ONE,
        "if (piece * PIECE >= m.cols) return 0.0f;\n    const Codes<BITS> codes(m, row, piece);\n    const ulong group",
        "if (piece * PIECE > m.cols) return 0.0f;\n    const Codes<BITS> codes(m, row, piece);\n    const ulong group",
    ),
    _product("affine biases are not multiplied", Kind.OPERATION, "codes.dot(x), bias * total)", "codes.dot(x), bias)"),
    _product("offsets of steps are added", Kind.OPERATION, "-offset(grid) * total)", "offset(grid) * total)"),
    _product(
        "a product of floats reads one column too many",
        Kind.BY_ONE,
        "if (column < m.cols) sum",
        "if (column <= m.cols) sum",
    ),
    _product(
        "a book's last code is left out",
        Kind.BY_ONE,
        "i < first + GROUP; ++i) part",
        "i + 1 < first + GROUP; ++i) part",
    ),
    _product(
        "a product of books looks for the piece's first book only",
        Kind.PLACE,
        "piece * PIECE + first));\n      float part",
        "piece * PIECE));\n      float part",
    ),
    _embedding("the token's place for its id", Kind.PLACE, "row = ids[at.y]", "row = at.y"),
    _embedding("rows of x overlap", Kind.STRIDE, "ulong(at.y) * m.cols", "ulong(at.y) * (m.cols - 1)"),
    _embedding("past the end of a row", Kind.GUARD, "i < PIECE && piece * PIECE + i < m.cols", "i < PIECE"),
    _embedding("without the row's scale", Kind.MISSING, "values[i] * scale", "values[i]"),
]
