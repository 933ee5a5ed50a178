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
// A number as one or two TF32 ones; an infinite one has no small part.
DEVICE unsigned small_part(float x, unsigned big) {
  const float rest = x - as_float(big);
  return tf32(magnitude(x) < INF ? rest : 0.0f);
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

template <int TERMS, int STRIPS> struct Left32 {
  unsigned big[STRIPS][4], small[STRIPS][4];
  DEVICE void take(const float (&x)[STRIPS][4]) {
    each(m, STRIPS) each(e, 4) {
      big[m][e] = tf32(x[m][e]);
      if (TERMS == 3) small[m][e] = small_part(x[m][e], big[m][e]);
    }
  }
};

// How many steps of 8 are summed together: two, of an even number.
template <int STEPS> constexpr int TOGETHER = STEPS % 2 == 0 ? 2 : 1;

// STEPS steps of 8 to sum over, from the k-th on: onto c, all of its columns, which begin at ``column`` of the right
// operand.  Tensor cores cut off what lies below the last bit of a sum that they add to, which errs to one side: three
// products are summed from zero, the small ones first, and c gets their sum by an addition that rounds.
template <int TERMS, int STEPS, int M, int N, class Right>
DEVICE void steps_of_products(float (&c)[M][N], const float (&x)[STEPS][M / 2][4], const Right& right, int k,
                              int column) {
  Left32<TERMS, M / 2> left[STEPS];
  each(s, STEPS) left[s].take(x[s]);
  each(n, N / 2) {
    float y[STEPS][2];
    each(s, STEPS) each(e, 2) y[s][e] = right.one(e ? right.second : right.first, column + n * 8, (k + s) * 8);
    each(m, M / 2) {
      float &c0 = c[2 * m][2 * n], &c1 = c[2 * m][2 * n + 1], &c2 = c[2 * m + 1][2 * n], &c3 = c[2 * m + 1][2 * n + 1];
      if (TERMS == 1) {
        each(s, STEPS) mma_tf32(c0, c1, c2, c3, left[s].big[m], tf32(y[s][0]), tf32(y[s][1]));
      } else {
        float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        each(s, STEPS) {
          const unsigned z0 = tf32(y[s][0]), z1 = tf32(y[s][1]);
          mma_tf32(own[0], own[1], own[2], own[3], left[s].small[m], z0, z1);
          mma_tf32(own[0], own[1], own[2], own[3], left[s].big[m], small_part(y[s][0], z0), small_part(y[s][1], z1));
        }
        each(s, STEPS) mma_tf32(own[0], own[1], own[2], own[3], left[s].big[m], tf32(y[s][0]), tf32(y[s][1]));
        c0 += own[0], c1 += own[1], c2 += own[2], c3 += own[3];
      }
    }
  }
}

// c += a * b in TERMS (1 or 3) products of TF32 numbers, with a in registers.  Its parts are made anew each time: kept
// across a loop, they would take two or three times its registers.
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
