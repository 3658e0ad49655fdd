// The codebooks of FORMAT.md, section 2: the levels of codes 0, 1, 2, ... in books 0 to 7. A test compares them.

constant char4 BOOKS_2_8[8][1] = {
    {{-34, -13, 6, 25}},
    {{-51, -23, -2, 20}},
    {{-46, -16, 8, 37}},
    {{-65, -27, 3, 36}},
    {{-80, -35, -6, 23}},
    {{-63, -13, 15, 49}},
    {{-88, -25, 10, 56}},
    {{-127, -38, -2, 33}},
};

constant char4 BOOKS_2_16[8][1] = {
    {{-35, -13, 4, 24}},
    {{-55, -24, -1, 22}},
    {{-44, -14, 8, 34}},
    {{-59, -23, 5, 39}},
    {{-56, -12, 15, 46}},
    {{-80, -30, -1, 29}},
    {{-81, -21, 11, 54}},
    {{-127, -31, 1, 34}},
};

constant char4 BOOKS_3_8[8][2] = {
    {{-30, -22, -14, -8}, {-2, 5, 11, 19}},
    {{-37, -26, -16, -7}, {1, 9, 18, 29}},
    {{-46, -34, -22, -12}, {-3, 5, 14, 25}},
    {{-57, -39, -21, -9}, {1, 12, 22, 35}},
    {{-52, -31, -16, -4}, {6, 17, 29, 44}},
    {{-72, -44, -27, -14}, {-3, 9, 21, 38}},
    {{-89, -49, -27, -12}, {1, 14, 30, 63}},
    {{-127, -65, -37, -20}, {-6, 6, 21, 52}},
};

constant char4 BOOKS_3_16[8][2] = {
    {{-33, -21, -12, -5}, {2, 10, 18, 27}},
    {{-41, -27, -17, -9}, {-1, 7, 15, 26}},
    {{-46, -31, -19, -8}, {1, 11, 22, 37}},
    {{-53, -37, -24, -13}, {-4, 6, 16, 30}},
    {{-66, -40, -25, -12}, {-2, 9, 22, 38}},
    {{-58, -34, -19, -8}, {3, 14, 27, 49}},
    {{-87, -48, -29, -15}, {-4, 8, 22, 43}},
    {{-127, -59, -28, -12}, {1, 15, 33, 75}},
};

// The books of a format: of each, its levels four by four.
template <int BITS, int GROUP> struct BookTable;
template <> struct BookTable<2, 8> {
  static char4 levels(uint book, uint part) { return BOOKS_2_8[book][part]; }
};
template <> struct BookTable<2, 16> {
  static char4 levels(uint book, uint part) { return BOOKS_2_16[book][part]; }
};
template <> struct BookTable<3, 8> {
  static char4 levels(uint book, uint part) { return BOOKS_3_8[book][part]; }
};
template <> struct BookTable<3, 16> {
  static char4 levels(uint book, uint part) { return BOOKS_3_16[book][part]; }
};
