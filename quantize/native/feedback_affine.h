// Error feedback on scales and biases: each group takes the best weighted least-squares grid that descent finds.
#pragma once
#include "candidates.h"
#include "feedback.h"

namespace moepack::MOEPACK_ISA {

inline Floats floats_at(const float* values) {
    Floats loaded;
    std::memcpy(&loaded, values, sizeof loaded);
    return loaded;
}

// The least-squares grid of each lane's group for some choice of codes, in units of the group's range.
struct WeightedFit {
    Floats scale;
    Floats bias;
    Floats mean_code;
    Floats gain;  // what the grid explains of the weighted sum of squares; 0 is nothing
};

template <int group_size>
class AffineFeedback {
public:
    static constexpr int size = group_size;

    AffineFeedback(const Target& target, const Importance& importance, int64_t cols)
        : target(target), importance(importance), cols(cols), top(float((1 << target.bits) - 1)) {}

    void begin(const Tile& tile, int64_t row, int used) {
        first_row = row, rows = used;
        std::memcpy(units, tile.units, sizeof units);
    }

    void choose(const Column* group, int64_t first) {
        const float* shares = &importance.shares[size_t(first)];
        float total = 0;
        for (int i = 0; i < size; i++) total += shares[i];
        for (int r = 0; r < tile_rows; r += lanes) {
            Range range = range_of(group, r);
            const Floats divisor = range.span > all(0) ? range.span : all(1);
            Floats values[size];
            for (int i = 0; i < size; i++) values[i] = (floats_at(group[i].rows + r) - range.low) / divisor;
            Floats mean = all(0);
            for (int i = 0; i < size; i++) mean += shares[i] * values[i];
            mean /= total;
            const WeightedFit fit = descend(values, shares, total, mean);
            for (int lane = 0; lane < lanes; lane++) {
                const UnitFit unit{range.low[lane], range.span[lane], fit.scale[lane], mean[lane], fit.mean_code[lane]};
                take(r + lane, unit, first / size);
            }
        }
    }

    void code(const Column& wanted, Column& quantized, uint8_t* codes) const {
        for (int r = 0; r < tile_rows; r += lanes) {
            const Floats scale = floats_at(scales.rows + r), bias = floats_at(biases.rows + r);
            const Floats quotient = (floats_at(wanted.rows + r) - bias) / floats_at(divisors.rows + r);
            const Floats code = rounded(smaller(larger(quotient, all(0)), all(top)));
            const Floats result = code * scale + bias;
            std::memcpy(quantized.rows + r, &result, sizeof result);
            for (int lane = 0; lane < lanes; lane++) codes[r + lane] = uint8_t(code[lane]);
        }
    }

    void store(const uint8_t* codes, int64_t row, int used) const {
        pack_rows(codes, cols, target.bits, used, target.codes + row * (cols / 8 * target.bits));
    }

private:
    static constexpr int cuts = 4;        // starts: as many ways of cutting off either end of the range
    static constexpr float cut = 0.375f;  // of a step, from one to the next
    static constexpr int descents = 4;

    struct Range {
        Floats low;
        Floats span;
    };

    static Range range_of(const Column* group, int r) {
        Floats low = floats_at(group[0].rows + r), high = low;
        for (int i = 1; i < size; i++) {
            low = smaller(low, floats_at(group[i].rows + r));
            high = larger(high, floats_at(group[i].rows + r));
        }
        return {low, high - low};
    }

    WeightedFit descend(const Floats (&values)[size], const float* shares, float total, Floats mean) const {
        WeightedFit best{all(0), mean, all(0), all(0)};
        for (int low = 0; low < cuts; low++)
            for (int high = 0; high < cuts; high++) {
                const float cut_low = float(low) * (cut / top), cut_high = float(high) * (cut / top);
                WeightedFit fit{all((1 - cut_low - cut_high) / top), all(cut_low), all(0), all(0)};
                for (int i = 0; i < descents; i++) {
                    fit = refit(values, shares, total, mean, fit);
                    const auto wins = fit.gain > best.gain;
                    best = {wins ? fit.scale : best.scale, wins ? fit.bias : best.bias,
                            wins ? fit.mean_code : best.mean_code, wins ? fit.gain : best.gain};
                }
            }
        return best;
    }

    // Nearest codes on the grid of `start`, then weighted least squares; `start` again where all codes are equal.
    WeightedFit refit(const Floats (&values)[size], const float* shares, float total, Floats mean,
                      const WeightedFit& start) const {
        const Floats inverse = 1.0f / start.scale;
        Floats codes = all(0), squares = all(0), products = all(0);
        for (int i = 0; i < size; i++) {
            const Floats code = rounded(smaller(larger((values[i] - start.bias) * inverse, all(0)), all(top)));
            const Floats counted = shares[i] * code;
            codes += counted;
            squares += counted * code;
            products += counted * (values[i] - mean);
        }
        const Floats mean_code = codes / total, variance = squares - codes * mean_code;
        const Floats scale = products / variance;
        const auto sound = (variance > all(0)) & (products > all(0));
        return {sound ? scale : start.scale, sound ? mean - scale * mean_code : start.bias, mean_code,
                sound ? products * scale : all(0)};
    }

    // Rounds the scale first; the bias is then the best one for the rounded scale.
    void take(int r, const UnitFit& fit, int64_t index) {
        const uint16_t scale = stored(fit.unit * fit.scale * units[r]);
        const double exact = double(float_of_bfloat16(scale)) / units[r];
        const uint16_t bias = stored((fit.origin + fit.unit * fit.mean - exact * fit.mean_code) * units[r]);
        scales.rows[r] = float(exact);
        biases.rows[r] = float(double(float_of_bfloat16(bias)) / units[r]);
        divisors.rows[r] = scales.rows[r] > 0 ? scales.rows[r] : __builtin_inff();
        if (r >= rows) return;
        const int64_t place = 2 * ((first_row + r) * (cols / size) + index);
        std::memcpy(target.scales + place, &scale, 2);
        std::memcpy(target.biases + place, &bias, 2);
    }

    // The nearest bfloat16 that is finite.
    static uint16_t stored(double value) {
        constexpr double largest = 0x1.fep127;
        return bfloat16_nearest(float(value > largest ? largest : value < -largest ? -largest : value));
    }

    Target target;
    const Importance& importance;
    int64_t cols;
    float top;
    int64_t first_row = 0;
    int rows = 0;
    double units[tile_rows];
    Column scales;
    Column biases;
    Column divisors;  // the scales, but infinite where they are zero
};

}  // namespace moepack::MOEPACK_ISA
