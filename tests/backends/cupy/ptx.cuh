// What the backend's ptx.cuh has as instructions, on the CPU.
#define DEVICE inline
#define INF HUGE_VALF
#define NOT_A_NUMBER __builtin_nanf("")

inline float as_float(unsigned bits) { float y; memcpy(&y, &bits, 4); return y; }
inline unsigned as_bits(float x) { unsigned y; memcpy(&y, &x, 4); return y; }

inline float power_of_two(float x) { const float y = exp2f(x); return y < 1.17549435e-38f ? 0.0f : y; }
inline float divided(float a, float b) { return a / b; }
inline float reciprocal(float x) { return 1.0f / x; }
inline float larger(float a, float b) { return a != a || a > b ? a : b; }
inline float lesser(float a, float b) { return a != a || a < b ? a : b; }

inline unsigned short to_bf16(float x) {
  const unsigned bits = as_bits(x);
  return x != x ? 0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline unsigned short to_f16(float x) { const _Float16 y = (_Float16)x; unsigned short z; memcpy(&z, &y, 2); return z; }
inline float from_f16(unsigned short bits) { _Float16 y; memcpy(&y, &bits, 2); return (float)y; }
inline float from_bf16(unsigned short bits) { return as_float((unsigned)bits << 16); }
inline unsigned bf16_pair(float a, float b) { return to_bf16(a) | (unsigned)to_bf16(b) << 16; }
inline unsigned f16_pair(float a, float b) { return to_f16(a) | (unsigned)to_f16(b) << 16; }
inline unsigned tf32(float x) {  // to nearest, ties away from zero
  const unsigned bits = as_bits(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

typedef unsigned char* Shared;
inline Shared shared_at(void* p) { return (Shared)p; }
inline Shared turned(Shared at, int bits) { return (Shared)((uintptr_t)at ^ (uintptr_t)bits); }
template <class T> inline T forgotten(T at) { return at; }
template <class T> inline T& in_shared(Shared at) { return *(T*)at; }
inline void copy_async_16(void* to, const void* from) { host::copy(to, from, 16, 16); }
template <int BYTES> inline void copy_async(void* to, const void* from, int valid) { host::copy(to, from, BYTES, valid); }
inline void copies_commit() { ++host::fibers[host::current].group; }
template <int LEFT> inline void copies_wait() { host::wait(LEFT); }

struct Matrices { const void* row; unsigned* out; bool turned; };
inline void gather(Matrices** all) {
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m) {
      unsigned short part[2];
      for (int e = 0; e < 2; ++e) {
        const int row = all[l]->turned ? l % 4 * 2 + e : l / 4, col = all[l]->turned ? l / 4 : l % 4 * 2 + e;
        part[e] = ((const unsigned short*)all[m * 8 + row]->row)[col];
      }
      all[l]->out[m] = part[0] | (unsigned)part[1] << 16;
    }
}
inline void load_matrices(unsigned (&x)[4], Shared row) {
  if ((uintptr_t)row % 16) host::failure = "a matrix row that is not aligned";
  Matrices a{row, x, false};
  host::together("matrices", a, gather);
}
inline void load_matrices_turned(unsigned (&x)[4], Shared row) {
  Matrices a{row, x, true};
  host::together("matrices turned", a, gather);
}

struct Product { float *c0, *c1, *c2, *c3; const unsigned* a; unsigned b[2]; };
template <int K, class Get> inline void multiply(Product** all, Get get) {
  float a[16][K], b[K][8];
  for (int l = 0; l < 32; ++l) {
    const int group = l / 4, in = l % 4;
    for (int r = 0; r < 4; ++r) get(a[group + r % 2 * 8], in, r / 2, all[l]->a[r]);
    for (int r = 0; r < 2; ++r) {
      float column[K];
      get(column, in, r, all[l]->b[r]);
      const int first = K == 16 ? in * 2 + r * 8 : in + r * 4;
      for (int e = 0; e < K / 8; ++e) b[first + e][group] = column[first + e];
    }
  }
  for (int l = 0; l < 32; ++l) {
    float* const c[4] = {all[l]->c0, all[l]->c1, all[l]->c2, all[l]->c3};
    for (int e = 0; e < 4; ++e) {
      const int row = l / 4 + e / 2 * 8, col = l % 4 * 2 + e % 2;
      double sum = *c[e];  // tensor cores sum exactly, and cut off or round once
      for (int k = 0; k < K; ++k) sum += double(a[row][k]) * b[k][col];
      *c[e] = float(sum);
    }
  }
}
inline void mma_bf16(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Product p{&c0, &c1, &c2, &c3, a, {b0, b1}};
  host::together<Product>("mma bf16", p, [](Product** all) {
    multiply<16>(all, [](float* row, int in, int half, unsigned bits) {
      row[in * 2 + half * 8] = from_bf16(bits & 0xffff), row[in * 2 + half * 8 + 1] = from_bf16(bits >> 16);
    });
  });
}
inline void mma_f16(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Product p{&c0, &c1, &c2, &c3, a, {b0, b1}};
  host::together<Product>("mma f16", p, [](Product** all) {
    multiply<16>(all, [](float* row, int in, int half, unsigned bits) {
      row[in * 2 + half * 8] = from_f16(bits & 0xffff), row[in * 2 + half * 8 + 1] = from_f16(bits >> 16);
    });
  });
}
inline void mma_tf32(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Product p{&c0, &c1, &c2, &c3, a, {b0, b1}};
  host::together<Product>("mma tf32", p, [](Product** all) {
    multiply<8>(all, [](float* row, int in, int half, unsigned bits) { row[in + half * 4] = as_float(bits); });
  });
}
