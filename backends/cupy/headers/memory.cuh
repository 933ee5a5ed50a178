// Memory: runs of elements between global memory and registers, tiles in shared memory.
#pragma once
#include "numbers.cuh"

// ---- global memory --------------------------------------------------------------------------------------------------
template <int BYTES> struct Word;
template <> struct Word<16> { typedef uint4 type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<2> { typedef unsigned short type; };

// RUN elements, ``step`` apart, of which the first ``inside`` exist; ``other`` stands for the rest.  ALIGN: they are
// neighbours, and ``from`` is a multiple of so many bytes (0: no such thing is known).
template <int ALIGN, int RUN, class R, class T>
DEVICE void load_run(R* to, const T* from, long long step, int inside = RUN, T other = T{}) {
  constexpr int BYTES = RUN * (int)sizeof(T), LARGEST = ALIGN < BYTES ? ALIGN : BYTES;
  if constexpr (LARGEST >= (int)sizeof(R) && LARGEST > 1 && BYTES % LARGEST == 0) {
    if (inside >= RUN) {
      constexpr int EACH = LARGEST / (int)sizeof(R);
      typedef typename Word<LARGEST>::type W;
      each(p, BYTES / LARGEST) {
        const W word = *(const W*)((const char*)from + p * LARGEST);
        R part[EACH];
        memcpy(part, &word, LARGEST);
        each(k, EACH) to[p * EACH + k] = part[k];
      }
      return;
    }
  }
  each(k, RUN) put(to, k, k < inside ? from[k * step] : other);
}

// The same way back: the elements that exist are written.
template <int ALIGN, int RUN, class R, class T>
DEVICE void store_run(T* to, const R* from, long long step, int inside = RUN) {
  constexpr int BYTES = RUN * (int)sizeof(T), LARGEST = ALIGN < BYTES ? ALIGN : BYTES;
  if constexpr (LARGEST >= (int)sizeof(R) && LARGEST > 1 && BYTES % LARGEST == 0) {
    if (inside >= RUN) {
      constexpr int EACH = LARGEST / (int)sizeof(R);
      typedef typename Word<LARGEST>::type W;
      each(p, BYTES / LARGEST) {
        R part[EACH];
        each(k, EACH) part[k] = from[p * EACH + k];
        W word;
        memcpy(&word, part, LARGEST);
        *(W*)((char*)to + p * LARGEST) = word;
      }
      return;
    }
  }
  each(k, RUN) if (k < inside) to[k * step] = get(from, k);
}

// ---- tiles in shared memory -----------------------------------------------------------------------------------------
// ROWS x COLS elements, rows after rows in chunks of 16 bytes.  Chunks change places within a row so that the eight
// rows that a tensor core's operand takes together lie in different banks.
template <class T, int ROWS, int COLS> struct Tile {
  static constexpr int PER = 16 / (int)sizeof(T);
  static constexpr int CHUNKS = (COLS + PER - 1) / PER;
  static constexpr bool TURNS = (CHUNKS & (CHUNKS - 1)) == 0;
  static constexpr int PITCH = TURNS ? CHUNKS : CHUNKS | 1;
  static constexpr int BYTES = ROWS * PITCH * 16;
  Shared base;

  DEVICE Shared chunk(int row, int c) const {
    if constexpr (TURNS) {
      const int line = CHUNKS >= 8 ? row : row / (8 / CHUNKS);
      c ^= sizeof(T) == 2 ? line & (CHUNKS >= 8 ? 7 : CHUNKS - 1) : ((line ^ (line >> 1)) & 3) * 2 & (CHUNKS - 1);
    }
    return base + (row * PITCH + c) * 16;
  }
  // The place ``row`` (a multiple of 8) and ``c`` (even), both known when compiling, behind the one of chunk(r, 0 or 1):
  // it differs by what an instruction can hold.  Tiles begin at multiples of 1024 bytes for that.
  static DEVICE Shared further(Shared at, int row, int c) {
    return (TURNS ? turned(at, c * 16) : at + c * 16) + row * (PITCH * 16);
  }
  DEVICE Shared place(int row, int col) const { return chunk(row, col / PER) + col % PER * sizeof(T); }
  DEVICE T& at(int row, int col) const { return in_shared<T>(place(row, col)); }
};

// One chunk of a tile, of which the first ``inside`` elements exist.
template <int ALIGN, class T> DEVICE void copy_chunk(Shared to, const T* from, int inside, long long step) {
  constexpr int PER = 16 / (int)sizeof(T);
  if constexpr (ALIGN >= 16) {
    copy_async<16>(to, from, inside * (int)sizeof(T));
  } else if constexpr (ALIGN >= 4) {
    constexpr int IN = ALIGN / (int)sizeof(T);
    each(p, PER / IN) {
      const int here = inside - p * IN;
      copy_async<ALIGN>(to + p * ALIGN, from + p * IN, (here < 0 ? 0 : here > IN ? IN : here) * (int)sizeof(T));
    }
  } else {
    each(e, PER) in_shared<T>(to + e * sizeof(T)) = e < inside ? from[e * step] : T{};
  }
}

// A tile from global memory, by all BY threads of the block: the first ``rows`` rows exist, and the first ``cols``
// columns (WHOLE: all of them), zeros stand for the rest; elements are ``step`` apart (ALIGN > 0: neighbours).  The tile
// is there after copies_wait and __syncthreads.  This one has rows that lie ``apart``, from ``own_part(...)`` on.
template <int ALIGN, int BY, bool WHOLE, class T, int ROWS, int COLS>
DEVICE void copy_tile(Tile<T, ROWS, COLS> to, const T* from, long long apart, int rows, int cols, long long step) {
  typedef Tile<T, ROWS, COLS> To;
  constexpr int ALL = ROWS * To::CHUNKS, PER = To::PER, ROUNDS = (ALL + BY - 1) / BY, STEP = BY / To::CHUNKS;
  constexpr bool STAYS = BY % To::CHUNKS == 0;  // each thread in its column
  const int row0 = threadIdx.x / To::CHUNKS, c0 = threadIdx.x % To::CHUNKS;
  const Shared place0 = to.chunk(row0, c0);
  const int below = rows - row0;  // the rows that exist from this thread's first one on
  if (ALIGN >= 16 && WHOLE && STAYS && STEP % 8 == 0 && ALL % BY == 0 && rows >= ROWS) {
    each(k, ROUNDS) {
      copy_async_16(To::further(place0, k * STEP, 0), from);
      from += STEP * apart;
    }
    return;
  }
  each(k, ROUNDS) {
    const int n = k * BY + (int)threadIdx.x;
    const int r = STAYS ? row0 + k * STEP : n / To::CHUNKS, c = STAYS ? c0 : n % To::CHUNKS;
    if (ALL % BY != 0 && n >= ALL) break;
    const bool exists = STAYS ? k * STEP < below : r < rows;
    const int left = WHOLE ? PER : cols - c * PER, inside = exists ? (left < 0 ? 0 : left > PER ? PER : left) : 0;
    copy_chunk<ALIGN>(STAYS && STEP % 8 == 0 ? To::further(place0, k * STEP, 0) : to.chunk(r, c),
                      STAYS ? from : from + (r * apart + c * PER * (ALIGN ? 1 : step)), inside, step);
    if (STAYS) from += STEP * apart;
  }
}

// The place from which a thread copies its part of a tile To of that kind whose first row is at ``from``.
template <class To, int ALIGN, int BY, class T> DEVICE const T* own_part(const T* from, long long apart, long long step) {
  if (BY % To::CHUNKS != 0) return from;
  return forgotten(from + (threadIdx.x / To::CHUNKS * apart + threadIdx.x % To::CHUNKS * To::PER * (ALIGN ? 1 : step)));
}

// The same for rows that lie anywhere: row r begins ``row(r)`` behind ``from``.
template <int ALIGN, int BY, class T, int ROWS, int COLS, class Row>
DEVICE void copy_rows(Tile<T, ROWS, COLS> to, const T* from, Row row, int rows, int cols, long long step) {
  typedef Tile<T, ROWS, COLS> To;
  for (int n = (int)threadIdx.x; n < ROWS * To::CHUNKS; n += BY) {
    const int r = n / To::CHUNKS, c = n % To::CHUNKS, left = cols - c * To::PER;
    const int inside = r < rows ? (left < 0 ? 0 : left > To::PER ? To::PER : left) : 0;
    copy_chunk<ALIGN>(to.chunk(r, c), from + (inside > 0 ? row(r) : 0) + c * To::PER * (ALIGN ? 1 : step), inside, step);
  }
}

// Zeros all over a tile.
template <int BY, class T, int ROWS, int COLS> DEVICE void clear_tile(Tile<T, ROWS, COLS> tile) {
  for (int k = (int)threadIdx.x; k < Tile<T, ROWS, COLS>::BYTES / 4; k += BY) in_shared<unsigned>(tile.base + 4 * k) = 0;
}
