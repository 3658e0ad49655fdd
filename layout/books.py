"""The codebooks of the `book` formats: eight per format, of int8 levels; books 8 to 15 are these mirrored at zero.

Found by Lloyd's algorithm (S. P. Lloyd, Least squares quantization in PCM, 1982) generalised to groups that choose one
of several codebooks, on rows of normal, Student-t (10 and 5 degrees of freedom) and column-scaled normal weights, each
row with its best scale; then scaled to 127 and rounded. They are part of the specification (FORMAT.md, section 2) and
never change under these names.
"""

BOOKS: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = {
    (2, 8): (
        (-34, -13, 6, 25),
        (-51, -23, -2, 20),
        (-46, -16, 8, 37),
        (-65, -27, 3, 36),
        (-80, -35, -6, 23),
        (-63, -13, 15, 49),
        (-88, -25, 10, 56),
        (-127, -38, -2, 33),
    ),
    (2, 16): (
        (-35, -13, 4, 24),
        (-55, -24, -1, 22),
        (-44, -14, 8, 34),
        (-59, -23, 5, 39),
        (-56, -12, 15, 46),
        (-80, -30, -1, 29),
        (-81, -21, 11, 54),
        (-127, -31, 1, 34),
    ),
    (3, 8): (
        (-30, -22, -14, -8, -2, 5, 11, 19),
        (-37, -26, -16, -7, 1, 9, 18, 29),
        (-46, -34, -22, -12, -3, 5, 14, 25),
        (-57, -39, -21, -9, 1, 12, 22, 35),
        (-52, -31, -16, -4, 6, 17, 29, 44),
        (-72, -44, -27, -14, -3, 9, 21, 38),
        (-89, -49, -27, -12, 1, 14, 30, 63),
        (-127, -65, -37, -20, -6, 6, 21, 52),
    ),
    (3, 16): (
        (-33, -21, -12, -5, 2, 10, 18, 27),
        (-41, -27, -17, -9, -1, 7, 15, 26),
        (-46, -31, -19, -8, 1, 11, 22, 37),
        (-53, -37, -24, -13, -4, 6, 16, 30),
        (-66, -40, -25, -12, -2, 9, 22, 38),
        (-58, -34, -19, -8, 3, 14, 27, 49),
        (-87, -48, -29, -15, -4, 8, 22, 43),
        (-127, -59, -28, -12, 1, 15, 33, 75),
    ),
}
