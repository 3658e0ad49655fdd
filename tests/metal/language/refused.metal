// Sources that must be refused, in sections: `//// name | part of the message`, and then the lines of one. All of them
// begin by including metal_stdlib. The line to blame ends with //!

//// double | MSL has no double
kernel void k(device float* y [[buffer(0)]]) {
  double d = y[0]; //!
  y[0] = d;
}

//// double through a library | MSL has no double
kernel void k(device float* y [[buffer(0)]]) {
  y[0] = y[1] * __builtin_huge_val(); //!
}

//// std | MSL has no namespace std
kernel void k(device float* y [[buffer(0)]]) {
  y[0] = std::exp(y[1]); //!
}

//// new | MSL has no new
kernel void k(device float* y [[buffer(0)]]) {
  thread float* p = new float; //!
  y[0] = *p;
}

//// exceptions | MSL has no exceptions
kernel void k(device float* y [[buffer(0)]]) {
  if (y[0] > 0.0f) throw 1; //!
}

//// goto | MSL has no goto
kernel void k(device float* y [[buffer(0)]]) {
again:
  y[0] += 1.0f;
  if (y[0] < 4.0f) goto again; //!
}

//// recursion | MSL has no recursion, and f calls itself
static float f(float x) { //!
  return x > 1.0f ? x * f(x - 1.0f) : x;
}
kernel void k(device float* y [[buffer(0)]]) { y[0] = f(y[1]); }

//// recursion of two | MSL has no recursion
static float g(float x);
static float f(float x) { //!
  return x > 1.0f ? g(x - 1.0f) : x;
}
static float g(float x) {
  return f(x / 2.0f);
}
kernel void k(device float* y [[buffer(0)]]) { y[0] = f(y[1]); }

//// kernel pointer without a space | no address space
kernel void k(float* y [[buffer(0)]]) { //!
  y[0] = 1.0f;
}

//// pointer without a space | this pointer has no address space
static void f(const float* p, thread float& sum) { //!
  sum += p[0];
}
kernel void k(device float* y [[buffer(0)]]) { float s = 0; f(&s, s); y[0] = s; }

//// reference without a space | this reference has no address space
struct Sum {
  float total;
  void add(const Sum& other) { total += other.total; } //!
};
kernel void k(device float* y [[buffer(0)]]) { y[0] = 1.0f; }

//// local pointer without a space | no address space
kernel void k(device float* y [[buffer(0)]]) {
  float a = 1.0f;
  float* p = &a; //!
  y[0] = *p;
}

//// member without a space | no address space
struct Row {
  const float* x; //!
};
kernel void k(device float* y [[buffer(0)]]) { y[0] = 1.0f; }

//// threadgroup memory as device | no matching function
static void f(device float* p) { p[0] = 1.0f; }
kernel void k(threadgroup float* t [[threadgroup(0)]]) {
  f(t); //!
}

//// device pointer in a thread's | variable of type 'float *' with an lvalue of type 'device float *'
kernel void k(device float* y [[buffer(0)]]) {
  thread float* p = y; //!
  p[0] = 1.0f;
}

//// cast to another space | cast to another
kernel void k(device float* y [[buffer(0)]]) {
  thread float* p = (thread float*)y; //!
  p[0] = 1.0f;
}

//// write to constant | const
kernel void k(constant float& c [[buffer(0)]]) {
  c = 1.0f; //!
}

//// write to const | read-only variable
kernel void k(device const float* x [[buffer(0)]]) {
  x[0] = 1.0f; //!
}

//// write to a constant of the program | const
constant float A = 1.0f;
kernel void k(device float* y [[buffer(0)]]) {
  A = y[0]; //!
}

//// value of a constant that must be computed | a value that is known when it is compiled
constant float A = exp(1.0f); //!
kernel void k(device float* y [[buffer(0)]]) { y[0] = A; }

//// variable of the program | must be constant
float total = 1.0f; //!
kernel void k(device float* y [[buffer(0)]]) { y[0] = total; }

//// static const of the program | must be constant
static const uint N[2] = {1, 2}; //!
kernel void k(device float* y [[buffer(0)]]) { y[0] = N[0]; }

//// no attribute | needs one attribute
kernel void k(device float* y) { //!
  y[0] = 1.0f;
}

//// unknown attribute | [[bufer]], which is unknown
kernel void k(device float* y [[bufer(0)]]) { //!
  y[0] = 1.0f;
}

//// unknown attribute of a function | [[inlined]] is unknown
[[inlined]] static float f() { return 1.0f; } //!

//// index out of range | an index from 0 to 30
kernel void k(device float* y [[buffer(31)]]) { //!
  y[0] = 1.0f;
}

//// index used twice | [[buffer(0)]] is used twice
kernel void k(device float* x [[buffer(0)]],
  device float* y [[buffer(0)]]) { //!
  y[0] = x[0];
}

//// buffer in threadgroup memory | [[buffer]] parameter is
kernel void k(threadgroup float* y [[buffer(0)]]) {} //!

//// buffer by value | [[buffer]] parameter is
kernel void k(float y [[buffer(0)]]) {} //!

//// threadgroup argument in device memory | [[threadgroup]] parameter
kernel void k(device float* y [[threadgroup(0)]]) {} //!

//// threadgroup memory outside kernels | in kernels only
static void f() {
  threadgroup float t[4]; //!
  t[0] = 1.0f;
}
kernel void k(device float* y [[buffer(0)]]) { f(); }

//// threadgroup memory with a value | initial value
kernel void k(device float* y [[buffer(0)]]) {
  threadgroup float t = 0.0f; //!
  y[0] = t;
}

//// function constant | macros are
constant bool A [[function_constant(0)]]; //!
kernel void k(device float* y [[buffer(0)]]) { y[0] = A; }

//// vector of too few | as many components
kernel void k(device float* y [[buffer(0)]]) {
  float4 v = float4(1.0f, 2.0f); //!
  y[0] = v.x;
}

//// unknown function | undeclared identifier 'erff'
kernel void k(device float* y [[buffer(0)]]) {
  y[0] = erff(y[1]); //!
}

//// matrix of another type | a matrix is of its memory's type
kernel void k(device half* x [[buffer(0)]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, x); //!
}

//// syntax | expected ';'
kernel void k(device float* y [[buffer(0)]]) {
  y[0] = 1.0f //!
}

//// bracket | never closed
kernel void k(device float* y [[buffer(0)]]) { //!
  y[0] = 1.0f;

//// instance of no kernel | f is not a kernel
template <typename T> void f(device T* y) {}
template [[host_name("f")]] kernel void f<float>(device float*); //!

//// missing include | file not found
#include "nothing.h" //!
kernel void k(device float* y [[buffer(0)]]) {}
