// Two-level affine: the scale of a row.
//
// Any choice of codes and of a zero costs a group error + curvature * (unit - best unit)^2. The best few choices of
// every group, with the step that brings the unit nearest to the best one, tell what a scale costs: so a great many
// scales can be tried.
#pragma once
#include "scale_search.h"
#include "step_grids.h"

namespace moepack::MOEPACK_ISA {

constexpr int most_choices = 4;
constexpr int ladder_step = 4;  // between scales that are tried at first
constexpr int few_groups = 64;  // a row of fewer may use low steps only

// Sixteen groups side by side; of each, the best few choices.
struct Choices {
    Shelf units[most_choices];
    Shelf zeros[most_choices];
    Shelf errors[most_choices];
    Shelf curvatures[most_choices];
    Shelf power;   // the error of the grid that is zero
    Shelf weight;  // how much the group counts in the row
};

template <int bits, int size>
class StepSearch {
public:
    StepSearch(const int16_t* table, const Importance& importance, int cols)
        : grids(table), importance(importance), groups(cols / size), blocks(size_t((groups + shelf - 1) / shelf)) {}

    int best_scale(const Row& row, const ScaleLadder& ladder) {
        float widest = 0;
        for (int first = 0; first < groups; first += shelf) {
            const float cover = profile(row, first);
            widest = cover > widest ? cover : widest;
        }
        const int middle = ladder.nearest(double(widest / highest_step));
        BestScale best;
        const int above = groups < few_groups ? 4 * octave : octave;
        for (int away = -5 * octave / 4; away <= above; away += ladder_step) offer(ladder, middle + away, best);
        const int rough = best.scale;
        for (int away = 1 - ladder_step; away < ladder_step; away++) offer(ladder, rough + away, best);
        return best.scale;
    }

    // Of a group of the row that was searched last.
    uint8_t best_grid(const Row& row, int group, float scale) const {
        const Choices& block = blocks[size_t(group / shelf)];
        const int lane = group % shelf;
        uint32_t steps = 0;
        for (int choice = 0; choice < choices; choice++) {
            const int below = int(block.units[choice][lane] / scale);
            steps |= 3u << (below < highest_step ? below : highest_step);
        }
        steps &= (2u << highest_step) - 2;
        const int first = group * size;
        return grids.best_of_steps(&row.values[first], &importance.shares[first], scale, steps, block.power[lane]);
    }

private:
    struct Sample {
        float error = __builtin_inff();
        float unit = 0;
        int zero = 0;
    };

    static constexpr int samples = bits == 2 ? 6 : 9;
    static constexpr int choices = bits == 2 ? 3 : most_choices;  // of every group

    // The last sample is for groups that do not use all codes.
    static float share_of(int sample) {
        constexpr float narrowest = Shares<bits>::narrowest, usual = bits == 2 ? 1.06f : 1.18f;
        if (sample == samples - 1) return Span<bits>::top / (Span<bits>::top - (bits == 2 ? 1 : 2));
        return narrowest + float(sample) * ((usual - narrowest) / (samples - 2));
    }

    // The widest of the units that cover the groups.
    float profile(const Row& row, int first) {
        Choices& block = blocks[size_t(first / shelf)];
        std::memset(&block, 0, sizeof block);
        alignas(64) Floats values[size][shelf / lanes] = {}, counts[size][shelf / lanes] = {};
        float widest = 0;
        for (int lane = 0; lane < shelf && first + lane < groups; lane++) {
            const float* group = &row.values[(first + lane) * size];
            const float* shares = &importance.shares[(first + lane) * size];
            const Extent extent = extent_of<bits, size>(group, shares);
            widest = extent.cover > widest ? extent.cover : widest;
            block.power[lane] = extent.power;
            block.weight[lane] = importance.weights[first + lane];
            if (extent.cover > 0) take_samples(group, shares, extent.cover, block, lane);
            float *column = reinterpret_cast<float*>(values) + lane, *count = reinterpret_cast<float*>(counts) + lane;
            for (int i = 0; i < size; i++) column[i * shelf] = group[i], count[i * shelf] = shares[i];
        }
        for (int choice = 0; choice < choices; choice++)
            for (int part = 0; part < shelf / lanes; part++) fit(values, counts, block, choice, part);
        return widest;
    }

    void take_samples(const float* values, const float* shares, float cover, Choices& block, int lane) const {
        Sample best[choices];
        for (int i = 0; i < samples; i++) {
            Sample sample;
            sample.unit = cover * share_of(i);
            const Shelf sums = grids.sums(values, shares, sample.unit);
            const float least = sums.least();
            sample.error = least * (sample.unit * sample.unit);
            if (!(sample.error < best[choices - 1].error)) continue;
            sample.zero = sums.first_of(least);
            for (Sample& other : best)
                if (sample.error < other.error) std::swap(sample, other);
        }
        for (int choice = 0; choice < choices; choice++) {
            block.units[choice][lane] = best[choice].unit;
            block.zeros[choice][lane] = float(best[choice].zero);
        }
    }

    // Least squares for the codes that a sample gives: of unit and zero, then, with the zero rounded, of the unit.
    static void fit(const Floats (&values)[size][shelf / lanes], const Floats (&counts)[size][shelf / lanes],
                    Choices& block, int choice, int part) {
        const Floats none = all(0), unit = block.units[choice].parts[part];
        const Floats inverse = 1.0f / (8.0f * (unit > 0 ? unit : all(1)));
        const Floats zero = block.zeros[choice].parts[part];
        const Floats offset = (Span<bits>::per_zero * zero - Span<bits>::first) / 8.0f;
        Floats codes[size], count = none, sum = none, squares = none, total = none, products = none;
        for (int i = 0; i < size; i++) {
            const Floats value = values[i][part] * inverse + offset;
            codes[i] = rounded(smaller(larger(value, none), all(Span<bits>::top)));
            const Floats counted = counts[i][part] * codes[i];
            count += counts[i][part], sum += counted, squares += counted * codes[i];
            total += counts[i][part] * values[i][part], products += counted * values[i][part];
        }
        const Floats variance = count * squares - sum * sum, covariance = count * products - sum * total;
        const auto sound = (variance > 0) & (covariance > 0);
        const Floats slope = covariance / (sound ? variance : all(1)), base = (total - slope * sum) / count;
        const Floats wanted = (Span<bits>::first - 8.0f * base / (sound ? slope : all(1))) / Span<bits>::per_zero;
        const Floats better = rounded(smaller(larger(sound ? wanted : zero, none), all(15)));
        const Floats shift = Span<bits>::first - Span<bits>::per_zero * better;
        const Floats square = 64.0f * squares + 16.0f * (shift * sum) + shift * shift * count;
        const Floats product = 8.0f * products + shift * total;
        const auto usable = (square > 0) & (product > 0);
        const Floats best = usable ? product / (usable ? square : all(1)) : none;
        Floats error = none;
        for (int i = 0; i < size; i++) {
            const Floats off = values[i][part] - best * (8.0f * codes[i] + shift);
            error += counts[i][part] * (off * off);
        }
        block.units[choice].parts[part] = best;
        block.errors[choice].parts[part] = error;
        block.curvatures[choice].parts[part] = square;
    }

    void offer(const ScaleLadder& ladder, int scale, BestScale& best) const {
        const int sound = ladder.clamped(scale);
        best.offer(sound, error(ladder.value(sound)));
    }

    double error(float scale) const {
        const Floats inverse = all(1 / scale), scales = all(scale), lowest = all(1), most = all(highest_step);
        Shelf total{};
        for (const Choices& block : blocks)
            for (int part = 0; part < shelf / lanes; part++) {
                Floats best = block.power.parts[part];
                for (int choice = 0; choice < choices; choice++) {
                    const Floats unit = block.units[choice].parts[part];
                    const Floats step = rounded(smaller(larger(unit * inverse, lowest), most));
                    const Floats off = step * scales - unit;
                    const Floats curvature = block.curvatures[choice].parts[part];
                    best = smaller(best, block.errors[choice].parts[part] + curvature * (off * off));
                }
                total.parts[part] += best * block.weight.parts[part];
            }
        float sums[shelf];
        std::memcpy(sums, total.parts, sizeof sums);
        return double(sum_of(sums));
    }

    StepGrids<bits, size> grids;
    const Importance& importance;
    int groups;
    std::vector<Choices> blocks;
};

}  // namespace moepack::MOEPACK_ISA
