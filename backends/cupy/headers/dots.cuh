// Products on tensor cores.  A block of results [rows, columns] is held as the tensor cores leave it: a warp owns
// strips of 16 rows, a thread of it rows lane / 4 and 8 further, and columns 2 * (lane % 4) and the next of every 8.
// What is summed over lies in the left operand as columns lie in a result, so a result can be an operand as it is.
#pragma once
#include "memory.cuh"

DEVICE void mma(bf16, float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma_bf16(c0, c1, c2, c3, a, b0, b1);
}
DEVICE void mma(f16, float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma_f16(c0, c1, c2, c3, a, b0, b1);
}

// The right operand, as the lanes of a warp name it.  TURNED: the tile's rows are columns of the result (else they are
// what is summed over).
template <bool TURNED, class B> struct Right {
  Shared at;
  DEVICE Right(B tile) {
    const unsigned lane = threadIdx.x % 32;
    at = forgotten(TURNED ? tile.chunk(lane / 16 * 8 + lane % 8, lane / 8 % 2) : tile.chunk(lane % 16, lane / 16));
  }
  // For 16 columns (the second 8 only where there are so many) and 16 to sum over: b[0..1] for the first 8 columns.
  DEVICE void operand(unsigned (&b)[4], int column, int k) const {
    if (TURNED)
      load_matrices(b, B::further(at, column, k / 8));
    else
      load_matrices_turned(b, B::further(at, k, column / 8));
  }
};

template <class T, int M, int N> DEVICE void row_of_products(float (&c)[M][N], const unsigned (&x)[M / 2][4], const unsigned (&y)[4], int n) {
  each(m, M / 2) {
    mma(T{}, c[2 * m][4 * n], c[2 * m][4 * n + 1], c[2 * m + 1][4 * n], c[2 * m + 1][4 * n + 1], x[m], y[0], y[1]);
    if (4 * n + 2 < N)
      mma(T{}, c[2 * m][4 * n + 2], c[2 * m][4 * n + 3], c[2 * m + 1][4 * n + 2], c[2 * m + 1][4 * n + 3], x[m], y[2],
          y[3]);
  }
}

// c += a * b, with a in registers: [rows][pairs].
template <class T, bool TURNED, int M, int N, int K, class B>
DEVICE void dot(float (&c)[M][N], const Pair<T> (&a)[M][K], B b) {
  const Right<TURNED, B> right(b);
  each(k, K / 2) {
    unsigned x[M / 2][4];
    each(m, M / 2) {
      x[m][0] = a[2 * m][2 * k].bits, x[m][1] = a[2 * m + 1][2 * k].bits;
      x[m][2] = a[2 * m][2 * k + 1].bits, x[m][3] = a[2 * m + 1][2 * k + 1].bits;
    }
    each(n, (N / 2 + 1) / 2) {
      unsigned y[4];
      right.operand(y, n * 16, k * 16);
      row_of_products<T>(c, x, y, n);
    }
  }
}

// The same with a in a tile of K columns whose rows are the result's: this warp's strips begin at ``row`` and lie
// APART rows apart.
template <class T, bool TURNED, int K, int APART, int M, int N, class A, class B>
DEVICE void dot(float (&c)[M][N], A a, int row, B b) {
  const Right<TURNED, B> right(b);
  const unsigned lane = threadIdx.x % 32;
  const Shared left = forgotten(a.chunk(row + lane % 16, lane / 16));
  each(k, K / 16) {
    unsigned x[M / 2][4];
    each(m, M / 2) load_matrices(x[m], A::further(left, m * APART, 2 * k));
    each(n, (N / 2 + 1) / 2) {
      unsigned y[4];
      right.operand(y, n * 16, k * 16);
      row_of_products<T>(c, x, y, n);
    }
  }
}

// ---- float32 --------------------------------------------------------------------------------------------------------
// Two neighbouring numbers as pairs of bfloat16 ones: what is nearest to them, to what is left, and to what is left then.
// Three hold all bits of a float32; what is not finite has no rest.
struct Parts { unsigned of[3]; };
DEVICE float rest(float x, unsigned nearest) {
  const float left = x - as_float(nearest);
  return magnitude(left) < INF ? left : 0.0f;
}
DEVICE Parts parts(float x, float y) {
  Parts p;
  each(i, 3) {
    p.of[i] = bf16_pair(x, y);
    x = rest(x, p.of[i] << 16), y = rest(y, p.of[i] & 0xffff0000u);
  }
  return p;
}

// The right operand as a lane names it.  What is summed over is paired: the tensor core's element lane % 4 is our
// 2 * (lane % 4), and the one 4 further is our next.
template <bool TURNED, class B> struct Right32 {
  Shared first, second;
  DEVICE Right32(B tile) {
    const int lane = threadIdx.x % 32, group = lane / 4, in = lane % 4 * 2;
    first = forgotten(TURNED ? tile.place(group, in) : tile.place(in, group));
    second = TURNED ? first + 4 : forgotten(tile.place(in + 1, group));
  }
  DEVICE float one(Shared at, int column, int k) const {
    return in_shared<float>(TURNED ? B::further(at, column, k / 4) : B::further(at, k, column / 4));
  }
};

// How many steps of 8 are summed together: two, of an even number.
template <int STEPS> constexpr int TOGETHER = STEPS % 2 == 0 ? 2 : 1;

// STEPS steps of 8 to sum over, from the k-th on: onto c, all of its columns, which begin at ``column`` of the right
// operand.  Of the nine products of two numbers' parts six are made, the small ones first; the others are below a
// float32's last bit.  Tensor cores cut off what lies below the last bit of a sum that they add to, which errs to one
// side: the six are summed from zero, and c gets their sum by an addition that rounds.
template <int TERMS, int STEPS, int M, int N, class Right>
DEVICE void steps_of_products(float (&c)[M][N], const float (&x)[STEPS][M / 2][4], const Right& right, int k,
                              int column) {
  unsigned left[3][M / 2][4] = {};
  if (TERMS == 6)
    each(s, STEPS) each(m, M / 2) each(e, 2) {
      const Parts p = parts(x[s][m][e], x[s][m][e + 2]);
      each(i, 3) left[i][m][2 * s + e] = p.of[i];
    }
  each(n, N / 2) {
    float y[STEPS][2];
    each(s, STEPS) each(e, 2) y[s][e] = right.one(e ? right.second : right.first, column + n * 8, (k + s) * 8);
    Parts z[2] = {};
    if (TERMS == 6) each(s, STEPS) z[s] = parts(y[s][0], y[s][1]);
    each(m, M / 2) {
      float &c0 = c[2 * m][2 * n], &c1 = c[2 * m][2 * n + 1], &c2 = c[2 * m + 1][2 * n], &c3 = c[2 * m + 1][2 * n + 1];
      if (TERMS == 1) {
        each(s, STEPS) {
          const unsigned own[4] = {tf32(x[s][m][0]), tf32(x[s][m][1]), tf32(x[s][m][2]), tf32(x[s][m][3])};
          mma_tf32(c0, c1, c2, c3, own, tf32(y[s][0]), tf32(y[s][1]));
        }
      } else {
        const int pairs[6][2] = {{1, 1}, {2, 0}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};
        float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        each(i, 6) {
          const int of_left = pairs[i][0], of_right = pairs[i][1];
          mma_bf16(own[0], own[1], own[2], own[3], left[of_left][m], z[0].of[of_right], z[1].of[of_right]);
        }
        c0 += own[0], c1 += own[1], c2 += own[2], c3 += own[3];
      }
    }
  }
}

// c += a * b in one product of TF32 numbers (TERMS 1) or six of bfloat16 ones (TERMS 6), with a in registers.  Its parts
// are made anew each time: kept across a loop, they would take one and a half times its registers.
template <int TERMS, bool TURNED, int M, int N, int K, class B>
DEVICE void dot(float (&c)[M][N], const float (&a)[M][K], B b) {
  constexpr int STEPS = TOGETHER<K / 2>;
  const Right32<TURNED, B> right(b);
  each(k, K / 2 / STEPS) {
    float x[STEPS][M / 2][4];
    each(s, STEPS) each(m, M / 2) each(e, 4) x[s][m][e] = forgotten(a[2 * m + e % 2][2 * (k * STEPS + s) + e / 2]);
    steps_of_products<TERMS>(c, x, right, k * STEPS, 0);
  }
}

// The same with a in a tile of K columns whose rows are the result's (see the 16-bit one).
template <int TERMS, bool TURNED, int K, int APART, int M, int N, class A, class B>
DEVICE void dot(float (&c)[M][N], A a, int row, B b) {
  constexpr int STEPS = TOGETHER<K / 8>;
  const Right32<TURNED, B> right(b);
  const int lane = threadIdx.x % 32;
  const Shared left = forgotten(a.place(row + lane / 4, lane % 4 * 2));
  each(k, K / 8 / STEPS) {
    float x[STEPS][M / 2][4];
    each(s, STEPS) each(m, M / 2) each(e, 4)
      x[s][m][e] = in_shared<float>(A::further(left, m * APART + e % 2 * 8, 2 * (k * STEPS + s)) + e / 2 * 4);
    steps_of_products<TERMS>(c, x, right, k * STEPS, 0);
  }
}

// c += a * b, summed on its own before it is added: one long sum would err more.  Few columns at a time, which takes
// few registers.
template <int TERMS, bool TURNED, int M, int N, int K, class B>
DEVICE void dot_apart(float (&c)[M][N], const float (&a)[M][K], B b) {
  constexpr int STEPS = TOGETHER<K / 2>;
  const Right32<TURNED, B> right(b);
  each(n, N / 2) {
    float own[M][2];
    each(m, M) own[m][0] = own[m][1] = 0.0f;
    each(k, K / 2 / STEPS) {
      float x[STEPS][M / 2][4];
      each(s, STEPS) each(m, M / 2) each(e, 4) x[s][m][e] = a[2 * m + e % 2][2 * (k * STEPS + s) + e / 2];
      steps_of_products<TERMS>(own, x, right, k * STEPS, n * 8);
    }
    each(m, M) each(e, 2) c[m][2 * n + e] += own[m][e];
  }
}
