// Instructions of sm_80 as functions, and what else differs between compilers.  Nothing above this file has assembly
// in it, so another file with these names runs everything elsewhere.
#pragma once
#define DEVICE __device__ __forceinline__
#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

DEVICE float as_float(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned as_bits(float x) { return __float_as_uint(x); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------
// 2**x, to two units in the last place; results below the normal range are 0.
DEVICE float power_of_two(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
// a / b, to two units in the last place, for 1 <= b < 2**126.
DEVICE float divided(float a, float b) { return __fdividef(a, b); }
DEVICE float reciprocal(float x) { return __frcp_rn(x); }
// The larger and the smaller number, NaN if either is one.
DEVICE float larger(float a, float b) { float y; asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b)); return y; }
DEVICE float lesser(float a, float b) { float y; asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b)); return y; }

// ---- 16-bit numbers -------------------------------------------------------------------------------------------------
// Two numbers rounded to the nearest 16-bit ones; the first goes to the lower half.
DEVICE unsigned bf16_pair(float a, float b) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
  return y;
}
DEVICE unsigned f16_pair(float a, float b) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
  return y;
}
DEVICE float from_f16(unsigned short bits) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits)); return y; }
// The nearest number with ten bits behind the point: what a TF32 product sees of a float.
DEVICE unsigned tf32(float x) { unsigned y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }

// ---- shared memory --------------------------------------------------------------------------------------------------
// An address in shared memory, which takes one register.
typedef unsigned Shared;
DEVICE Shared shared_at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
DEVICE Shared turned(Shared at, int bits) { return at ^ bits; }
// The same number, which the compiler does not know: what follows from it is not kept in registers across a loop.
DEVICE Shared forgotten(Shared at) { asm volatile("" : "+r"(at)); return at; }
DEVICE float forgotten(float x) { asm volatile("" : "+f"(x)); return x; }
template <class T> DEVICE const T* forgotten(const T* at) { asm volatile("" : "+l"(at)); return at; }
template <class T> DEVICE T& in_shared(Shared at) { return *(T*)__cvta_shared_to_generic(at); }

// BYTES (16, 8 or 4) from global to shared memory, the first ``valid`` of them; zeros for the rest.  It happens at some
// time before copies_wait says so.  Where nothing is valid, ``from`` may point anywhere.
template <int BYTES> DEVICE void copy_async(Shared at, const void* from, int valid) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(valid) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(BYTES), "r"(valid) : "memory");
}
DEVICE void copy_async_16(Shared at, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
// The copies so far and since the last commit are a group.
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until all of this thread's groups but the last LEFT are there.
template <int LEFT> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- tensor cores ---------------------------------------------------------------------------------------------------
// Four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.  A thread gets, of each matrix, the
// elements 2 * (lane % 4) and the next of row lane / 4; _turned: of its transpose.
DEVICE void load_matrices(unsigned (&x)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row));
}
DEVICE void load_matrices_turned(unsigned (&x)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row));
}
#define MMA(shape, types)                                                                                              \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." types ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "    \
               "{%10, %11, %12, %13};"                                                                                 \
               : "=f"(c0), "=f"(c1), "=f"(c2), "=f"(c3)                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3))
// c += a * b for a of 16 rows, b of 8 columns and 16 (TF32: 8) to sum over.
DEVICE void mma_bf16(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MMA("m16n8k16", "bf16.bf16");
}
DEVICE void mma_f16(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MMA("m16n8k16", "f16.f16");
}
DEVICE void mma_tf32(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MMA("m16n8k8", "tf32.tf32");
}
#undef MMA
