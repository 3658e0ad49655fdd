// Least squares from affine codes of at most 4 bits to 2 bits: a group has at most 16 distinct weights, so its
// histogram is searched completely, and codes become codes by comparing bytes.
#pragma once
#include "candidates.h"
#include "splits.h"

namespace moepack::MOEPACK_ISA {

constexpr int levels = 16;

inline bool suits_histogram(const Source& source, const Target& target) {
    return !source.values && source.affine.bits <= 4 && target.bits == 2 &&
           source.affine.group_size % target.group_size == 0;
}

// A group by its ranks: the source's codes, reversed where the source's scale is negative, so that weights ascend.
template <int size>
struct Ranked {
    alignas(64) uint8_t ranks[size];
    alignas(64) float values[levels];  // weight of each rank; of ranks beyond the extremes, the extreme
    Extremes range;
    double first;  // weight of rank 0 without rounding, and from one rank to the next
    double step;
};

// Weights ascend with ranks, so the extremes are those of the lowest and the highest rank present.
template <int size>
inline void find_range(Ranked<size>& group) {
    uint8_t lowest = levels - 1, highest = 0;
    for (int i = 0; i < size; i++) {
        lowest = group.ranks[i] < lowest ? group.ranks[i] : lowest;
        highest = group.ranks[i] > highest ? group.ranks[i] : highest;
    }
    const float ends[2] = {group.values[lowest], group.values[highest]};
    group.range = extremes<2>(ends);
    for (int rank = 0; rank < levels; rank++) {
        const float value = group.values[rank];
        group.values[rank] = rank < lowest ? ends[0] : rank > highest ? ends[1] : value;
    }
}

template <int size>
inline void load_ranked(const Affine& affine, int64_t group, Ranked<size>& ranked) {
    alignas(64) static constexpr uint8_t ascending[levels] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    alignas(64) static constexpr uint8_t descending[levels] = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    const int64_t source_group = group * size / affine.group_size;
    const float scale = load_float(affine.scales, affine.type, source_group);
    const float bias = load_float(affine.biases, affine.type, source_group);
    const bool reversed = scale < 0;
    unpack(affine.codes + group * size / 8 * affine.bits, size, affine.bits, ranked.ranks);
    const uint8_t flip = reversed ? levels - 1 : 0;
    for (int i = 0; i < size; i++) ranked.ranks[i] ^= flip;
    dequantize_codes(reversed ? descending : ascending, levels, scale, bias, ranked.values);
    ranked.first = reversed ? bias + (levels - 1) * double(scale) : bias;
    ranked.step = __builtin_fabs(double(scale));  // of -0.0 too, so that no negative zero is stored
    find_range(ranked);
}

// The lowest rank with at least this code.
inline uint8_t first_rank_of(int code, const uint8_t* code_of_rank) {
    int rank = 0;
    while (rank < levels && code_of_rank[rank] < code) rank++;
    return uint8_t(rank);
}

// Codes ascend with ranks, so a weight's code is how many of three ranks it reaches.
template <int size>
inline void store_ranked(const Target& target, int64_t group, const Ranked<size>& ranked, const StoredGrid& grid,
                         const uint8_t* code_of_rank) {
    alignas(64) uint8_t codes[size];
    const uint8_t one = first_rank_of(1, code_of_rank), two = first_rank_of(2, code_of_rank);
    const uint8_t three = first_rank_of(3, code_of_rank);
    for (int i = 0; i < size; i++) {
        const uint8_t rank = ranked.ranks[i];
        codes[i] = uint8_t((rank >= one) + (rank >= two) + (rank >= three));
    }
    store<size>(target, group, grid, codes);
}

// How much the weights of each rank count.
struct Histogram {
    alignas(64) float counts[levels];
};

// How many there are: counts in the nibbles of a word, eight weights at a time, then in bytes: even ranks in one word, odd in another.
template <int size>
inline Histogram histogram_of(const Ranked<size>& group) {
    constexpr uint64_t low_nibbles = 0x0f0f0f0f0f0f0f0f;
    uint64_t even = 0, odd = 0;
    for (int i = 0; i < size; i += 8) {
        uint64_t nibbles = 0;
        for (int j = 0; j < 8; j++) nibbles += uint64_t{1} << 4 * group.ranks[i + j];
        even += nibbles & low_nibbles;
        odd += nibbles >> 4 & low_nibbles;
    }
    Histogram histogram;
    for (int pair = 0; pair < levels / 2; pair++) {
        histogram.counts[2 * pair] = float(even >> 8 * pair & 0xff);
        histogram.counts[2 * pair + 1] = float(odd >> 8 * pair & 0xff);
    }
    return histogram;
}

template <int size>
inline Histogram histogram_of(const Ranked<size>& group, const float* shares) {
    Histogram histogram{};
    for (int i = 0; i < size; i++) histogram.counts[group.ranks[i]] += shares[i];
    return histogram;
}

// Ranks are the units of the search, so that without importances its sums are whole numbers and exact.
inline void fill_tails(const Histogram* block, int used, Tails<levels>& tails) {
    std::memset(&tails, 0, sizeof tails);
    for (int lane = 0; lane < used; lane++) {
        float above = 0, sum = 0;
        for (int rank = levels - 1; rank >= 0; rank--) {
            above += block[lane].counts[rank];
            sum += block[lane].counts[rank] * float(rank);
            tails.count[rank][lane] = above;
            tails.sum[rank][lane] = sum;
        }
    }
}

template <int size, bool weighted>
inline int64_t mse_by_histogram(const Source& source, const Target& target, int64_t groups, const GroupShares& shares) {
    Ranked<size> block[lanes];
    Histogram histograms[lanes];
    Candidate candidates[2];
    Tails<levels> tails;
    for (int64_t first = 0; first < groups; first += lanes) {
        const int used = groups - first < lanes ? int(groups - first) : lanes;
        for (int lane = 0; lane < used; lane++) {
            load_ranked(source.affine, first + lane, block[lane]);
            if (!block[lane].range.usable) return first + lane;
            histograms[lane] =
                weighted ? histogram_of(block[lane], shares.of(first + lane)) : histogram_of(block[lane]);
        }
        fill_tails(histograms, used, tails);
        const Fit fit = best_split(tails, 0, 1);
        for (int lane = 0; lane < used; lane++) {
            const Ranked<size>& ranked = block[lane];
            const UnitFit unit{ranked.first, ranked.step, fit.scale[lane], tails.sum[0][lane] / tails.count[0][lane],
                               fit.mean_code[lane]};
            const Weighted group{ranked.values, histograms[lane].counts};
            const Candidate& chosen = better_of<levels>(group, ranked.range, stored_fit(unit), 2, candidates);
            store_ranked(target, first + lane, ranked, chosen.grid, chosen.codes);
        }
    }
    return -1;
}

}  // namespace moepack::MOEPACK_ISA
