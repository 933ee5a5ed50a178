// Reductions and running sums over what other threads hold.
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

// ---- running sums ---------------------------------------------------------------------------------------------------
// Along an axis of which a thread has N numbers, STEP apart.  A coordinate's digits are taken one after another, the
// least significant one first.  So far x are the running sums within groups of numbers that differ in the digits before
// (of which a thread has GROUP each), and sums those of whole groups; then the groups are those of one digit more.
template <int N, int STEP, int GROUP, int RADIX, class T> DEVICE void run_over_registers(T* x, T* sums) {
  each(a, N / (GROUP * RADIX)) {
    T before = sums[a * RADIX];
    each_after_first(d, RADIX) {
      each(g, GROUP) x[((a * RADIX + d) * GROUP + g) * STEP] += before;
      before += sums[a * RADIX + d];
    }
    sums[a] = before;
  }
}
template <int N, int STEP, int GROUP, int FROM, int TO, class T> DEVICE void run_over_lanes(T* x, T* sums) {
  each(a, N / GROUP) {
    T before = 0;
    _Pragma("unroll") for (int bit = FROM; bit < TO; bit *= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, sums[a], bit);
      before += threadIdx.x & bit ? other : (T)0;
      sums[a] += other;
    }
    each(g, GROUP) x[(a * GROUP + g) * STEP] += before;
  }
}
template <int N, int STEP, int GROUP, int FROM, int TO, class T>
DEVICE void run_over_warps(T* x, T* sums, unsigned char* shared) {
  constexpr int EACH = N / GROUP;
  T* const all = (T*)shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp & ~(TO - FROM);
  __syncthreads();
  each(a, EACH) all[(warp * EACH + a) * 32 + lane] = sums[a];
  __syncthreads();
  each(a, EACH) {
    T before = 0;
    sums[a] = 0;
    each(w, TO / FROM) {
      const T other = all[((first + w * FROM) * EACH + a) * 32 + lane];
      before += first + w * FROM < warp ? other : (T)0;
      sums[a] += other;
    }
    each(g, GROUP) x[(a * GROUP + g) * STEP] += before;
  }
}
