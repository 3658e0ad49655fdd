// Sources that only look like what is refused, in sections: `//// name`, and then the lines of one. All of them
// begin by including metal_stdlib.

//// const method
struct P {
  uint n;
  uint twice() const { return n * 2; }
};
kernel void k(device float* y [[buffer(0)]]) { P p; p.n = 1; y[0] = p.twice(); }

//// products that look like pointers
kernel void k(device float* y [[buffer(0)]]) {
  uint a = 2, b = 3;
  uint c;
  c = a * b;
  y[a * b] = float(c & b);
}

//// product in an array's size
template <int N> struct A {
  float v[N * 2 / (8 * sizeof(float))];
};
kernel void k(device float* y [[buffer(0)]]) { A<32> a; a.v[0] = 1; y[0] = a.v[0]; }

//// members made of products
struct A {
  uint n;
  A(uint i, uint j) : n(i * j) {}
};
kernel void k(device float* y [[buffer(0)]]) { y[0] = float(A(2, 3).n); }

//// auto pointer
kernel void k(device float* y [[buffer(0)]]) {
  auto p = y + 1;
  *p = 2.0f;
}

//// pointer to threadgroup memory
kernel void k(device float* y [[buffer(0)]]) {
  threadgroup float t[4];
  threadgroup float* p = t;
  *p = 1.0f;
  y[0] = *p;
}

//// two in one declaration
kernel void k(device float* y [[buffer(0)]]) {
  threadgroup float a[4], b;
  a[0] = 1.0f;
  b = a[0];
  y[0] = b;
}

//// banned words in text
kernel void k(device float* y [[buffer(0)]]) { /* double std new */ y[0] = 1.0f; } // throw

//// default value with a product
static float f(float x, uint n = 2 * 3) { return x * n; }
kernel void k(device float* y [[buffer(0)]]) { y[0] = f(1.0f); }

//// a call of itself by another type
static float f(float x) { return x; }
static float f(float2 v) { return f(v.x) + f(v.y); }
kernel void k(device float* y [[buffer(0)]]) { y[0] = f(float2(1.0f)); }

//// static assertion with a product
static_assert(2 * 3 == 6, "");
constant constexpr uint A = 2 * 3;
kernel void k(device float* y [[buffer(0)]]) { y[A * A] = 1.0f; }
