// What experts give is added up, and added to the residual stream. Arrays of floats only; no formats.

#include "numbers.h"

// x += sum of weights[k] * parts[k], k in the order of `order`, + sigmoid(gate) * shared; K terms, one product and one
// sum after the other. `order` lists the chosen experts by ascending id, so that a token's sum does not depend on which
// of them was likelier. parts [K, hidden]; weights, order [K]; shared, x [hidden]; gate [1]. Host: struct "<2I".
// Grid: ceil(hidden / THREADS) threadgroups of THREADS.
struct Combination {
  uint k, hidden;
};

kernel void combine(device const float* parts [[buffer(0)]],
                    device const float* weights [[buffer(1)]],
                    device const uint* order [[buffer(2)]],
                    device const float* shared [[buffer(3)]],
                    device const float* gate [[buffer(4)]],
                    device float* x [[buffer(5)]],
                    constant Combination& c [[buffer(6)]],
                    uint at [[thread_position_in_grid]]) {
  if (at >= c.hidden) return;
  float sum = 0.0f;
  for (uint k = 0; k < c.k; ++k) sum = fma(weights[order[k]], parts[order[k] * c.hidden + at], sum);
  x[at] += fma(sigmoid(gate[0]), shared[at], sum);
}

// x[token] += sigmoid(gate[token]) * y[token]. x, y [tokens, width]; gate [tokens]. Host: width, "<I".
// Grid: (ceil(width / THREADS), tokens) threadgroups of THREADS.
kernel void add_gated(device const float* y [[buffer(0)]],
                      device const float* gate [[buffer(1)]],
                      device float* x [[buffer(2)]],
                      constant uint& width [[buffer(3)]],
                      uint2 at [[thread_position_in_grid]]) {
  if (at.x >= width) return;
  const ulong i = ulong(at.y) * width + at.x;
  x[i] = fma(sigmoid(gate[at.y]), y[i], x[i]);
}

// h = silu(gate) * up, element by element; all [count]. Host: count, "<I".
// Grid: ceil(count / THREADS) threadgroups of THREADS.
kernel void swiglu(device const float* gate [[buffer(0)]],
                   device const float* up [[buffer(1)]],
                   device float* h [[buffer(2)]],
                   constant uint& count [[buffer(3)]],
                   uint at [[thread_position_in_grid]]) {
  if (at < count) h[at] = silu(gate[at]) * up[at];
}

// x += y, element by element; both [count]. Host: count, "<I". Grid: ceil(count / THREADS) threadgroups of THREADS.
kernel void add(device const float* y [[buffer(0)]],
                device float* x [[buffer(1)]],
                constant uint& count [[buffer(2)]],
                uint at [[thread_position_in_grid]]) {
  if (at < count) x[at] += y[at];
}

// x = 0, element by element; x [count]. Host: count, "<I". Grid: ceil(count / THREADS) threadgroups of THREADS.
kernel void clear(device float* x [[buffer(0)]],
                  constant uint& count [[buffer(1)]],
                  uint at [[thread_position_in_grid]]) {
  if (at < count) x[at] = 0.0f;
}
