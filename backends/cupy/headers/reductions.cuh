// Reductions over what other threads hold.
#pragma once
#include "numbers.cuh"

struct Sum { template <class T> static DEVICE T of(T a, T b) { return a + b; } };
struct Prod { template <class T> static DEVICE T of(T a, T b) { return a * b; } };
struct Max { template <class T> static DEVICE T of(T a, T b) { return larger(a, b); } };
struct Min { template <class T> static DEVICE T of(T a, T b) { return lesser(a, b); } };

// Over the lanes that differ in the bits FROM, 2 * FROM, ... below TO: each of them gets the result.
template <class Op, int FROM, int TO, class T> DEVICE T across_lanes(T x) {
  _Pragma("unroll") for (int bit = FROM; bit < TO; bit *= 2) x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, bit));
  return x;
}

// The same over warps, for N numbers of each thread, through shared memory (N numbers a thread of the block).
template <class Op, int FROM, int TO, int N, class T> DEVICE void across_warps(T* x, unsigned char* shared) {
  T* const all = (T*)shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp & ~(TO - FROM);
  __syncthreads();
  each(r, N) all[(warp * N + r) * 32 + lane] = x[r];
  __syncthreads();
  each(r, N) x[r] = all[(first * N + r) * 32 + lane];
  each_after_first(w, TO / FROM) each(r, N) x[r] = Op::of(x[r], all[((first + w * FROM) * N + r) * 32 + lane]);
}
