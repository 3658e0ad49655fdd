// The kernels of one instruction set, in its namespace; kernels.h says what each computes.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace moepack::MOEPACK_ISA {

int64_t planes(Kind);
int64_t fewest_in_panels(Kind);
void round_row(const float* x, int64_t cols, int64_t planes, Order order, uint8_t* to);
int64_t product_scratch(const Matrix&);
void matmul(const Matrix&, const Rows& x, float* y, int64_t stride, int64_t first, int64_t last, float* scratch);
void swiglu(const Matrix& gate, const Matrix& up, const Rows& x, const Rows& z, float* h, int64_t stride, int64_t first,
            int64_t last, float* scratch);
void accumulate(const Matrix&, const Rows& h, const int32_t* index, const float* weight, float* y, int64_t stride,
                int64_t first, int64_t last, float* scratch);
void row(const Matrix&, int64_t row, float* y);
void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t count);
void add_share(const float* x, float weight, float* y, int64_t count);
void add_gated(const float* x, float gate, float* y, int64_t count);
void route(const float* logits, int64_t count, int64_t k, int32_t* ids, float* weights, float* scratch);
void attention_cache(const Attention&, int64_t token);
void attention_start(const Attention&, int64_t tile, float* queries, float* sum);
void attention_block(const Attention&, int64_t tile, int64_t block, const float* queries, float* scores,
                     float* partial);
void attention_join(const Attention&, const float* partial, float* sum);
void attention_finish(const Attention&, int64_t tile, const float* sum);
void delta_inputs(const Delta&, int64_t first, int64_t last);
void delta_shift(const Delta&);
void delta_slice(const Delta&, int64_t head, int64_t slice, float* scratch);
void delta_outputs(const Delta&, int64_t row);

// values becomes exp(value - max); returns their sum.
float softmax(float* values, int64_t count);

}  // namespace moepack::MOEPACK_ISA
