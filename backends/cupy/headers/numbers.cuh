// Numbers: 16-bit ones and pairs of them, and the operators that C++ lacks or means differently.
#pragma once
#include "ptx.cuh"

#define each(r, n) _Pragma("unroll") for (int r = 0; r < (n); ++r)
#define each_after_first(r, n) _Pragma("unroll") for (int r = 1; r < (n); ++r)

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };
// Two neighbours in one register, the first in the lower half.
template <class T> struct Pair { unsigned bits; };

DEVICE float wide(bf16 x) { return as_float((unsigned)x.bits << 16); }
DEVICE float wide(f16 x) { return from_f16(x.bits); }
DEVICE float element(Pair<bf16> x, int k) { return as_float(k % 2 ? x.bits & 0xffff0000u : x.bits << 16); }
DEVICE float element(Pair<f16> x, int k) { return from_f16((unsigned short)(k % 2 ? x.bits >> 16 : x.bits & 0xffffu)); }

template <class T> DEVICE Pair<T> pair(float a, float b);
template <> DEVICE Pair<bf16> pair<bf16>(float a, float b) { return {bf16_pair(a, b)}; }
template <> DEVICE Pair<f16> pair<f16>(float a, float b) { return {f16_pair(a, b)}; }
template <class T> DEVICE T narrow(float x) { return {(unsigned short)(pair<T>(x, 0.0f).bits & 0xffffu)}; }

// How a block holds N elements of a buffer: 16-bit ones in pairs.
template <class T> struct Held { typedef T type; static constexpr int PER = 1; };
template <> struct Held<bf16> { typedef Pair<bf16> type; static constexpr int PER = 2; };
template <> struct Held<f16> { typedef Pair<f16> type; static constexpr int PER = 2; };
template <class T> DEVICE void put(T* block, int k, T x) { block[k] = x; }
template <class T> DEVICE void put(Pair<T>* block, int k, T x) {
  block[k / 2].bits = k % 2 ? (block[k / 2].bits & 0xffffu) | (unsigned)x.bits << 16 : (unsigned)x.bits;
}
template <class T> DEVICE T get(const T* block, int k) { return block[k]; }
template <class T> DEVICE T get(const Pair<T>* block, int k) {
  return {(unsigned short)(k % 2 ? block[k / 2].bits >> 16 : block[k / 2].bits & 0xffffu)};
}

// ---- operators ------------------------------------------------------------------------------------------------------
DEVICE double larger(double a, double b) { return a != a || a > b ? a : b; }
DEVICE double lesser(double a, double b) { return a != a || a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }
DEVICE int lesser(int a, int b) { return a < b ? a : b; }
DEVICE long long larger(long long a, long long b) { return a > b ? a : b; }
DEVICE long long lesser(long long a, long long b) { return a < b ? a : b; }
DEVICE bool within(int a, int most) { return (unsigned)a <= (unsigned)most; }  // 0 <= a <= most
DEVICE double power_of_two(double x) { return exp2(x); }
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE double magnitude(double x) { return fabs(x); }
DEVICE int magnitude(int x) { return x < 0 ? -x : x; }
DEVICE long long magnitude(long long x) { return x < 0 ? -x : x; }
// One of two numbers, both of which are computed: no thread waits for others at a branch.
template <class T> DEVICE T pick(bool which, T a, T b) { return which ? a : b; }
template <class T> DEVICE T sign(T x) { return (T)((x > (T)0) - (x < (T)0)); }

// Division rounds towards minus infinity, a remainder has the sign of the divisor.  Points beyond a tensor's end, which
// are computed and not stored, may divide integers by 0: any number will do.
template <class T> DEVICE T nonzero(T b) { return b == 0 ? (T)1 : b; }
template <class T> DEVICE T floor_div(T a, T b) {
  b = nonzero(b);
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
template <class T> DEVICE T floor_mod(T a, T b) {
  const T r = a % nonzero(b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <> DEVICE float floor_mod(float a, float b) {
  const float r = fmodf(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <> DEVICE double floor_mod(double a, double b) {
  const double r = fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <> DEVICE float floor_div(float a, float b) { return rintf((a - floor_mod(a, b)) / b); }
template <> DEVICE double floor_div(double a, double b) { return rint((a - floor_mod(a, b)) / b); }
template <class T> DEVICE T remainder_of(T a, T b) { return a % nonzero(b); }
template <> DEVICE float remainder_of(float a, float b) { return fmodf(a, b); }
template <> DEVICE double remainder_of(double a, double b) { return fmod(a, b); }
template <class T> DEVICE T raised(T a, T b) {
  T y = 1;
  for (T k = 0; k < b; ++k) y *= a;
  return y;
}
template <> DEVICE float raised(float a, float b) { return powf(a, b); }
template <> DEVICE double raised(double a, double b) { return pow(a, b); }
