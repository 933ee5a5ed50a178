// CUDA C++ on the CPU: each thread of a block is a fiber, barriers and warp operations are where fibers change.
//
// Which fiber goes on is drawn at random, and mostly stays within a warp, so that warps run far ahead of each other:
// results depend on the order wherever a barrier is missing.  Asynchronous copies land at a random time between their
// issue and the wait for them.  Shared memory is full of NaNs at first.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Place { unsigned x; };

namespace host {
constexpr int MOST = 1024, STACK = 256 << 10;
enum Status { RUNS, AT_BARRIER, IN_WARP, DONE };
struct Copy { void* to; const void* from; int bytes, valid, group; };
struct Fiber {
#ifdef __x86_64__
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  char* stack;
  Status status;
  Place thread;
  int group;          // of asynchronous copies
  Copy copies[512];
  int pending;
};
struct Warp {
  int lanes[32], runnable;  // lanes that can go on
  int arrived;
  const char* operation;
  void* arguments[32];
};
inline Fiber fibers[MOST];
inline Warp warps[MOST / 32];
inline int threads, current, alive, waiting, runnable, barriers;
inline uint64_t random_state;
inline const char* failure;
inline void (*body)();
inline Fiber home;

inline unsigned draw(unsigned below) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return (unsigned)(random_state >> 33) % below;
}

#ifdef __x86_64__
extern "C" void host_switch(void** save, void* load);
asm(R"(
.text
.weak host_switch
.type host_switch,@function
host_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size host_switch,.-host_switch
)");
inline void change(Fiber& from, Fiber& to) { host_switch(&from.stack_pointer, to.stack_pointer); }
inline void prepare(Fiber& f, void (*entry)()) {
  void** top = (void**)((uintptr_t)(f.stack + STACK) & ~(uintptr_t)63) - 1;
  *--top = (void*)entry;
  top -= 6;
  f.stack_pointer = top;
}
#else
inline void change(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
inline void prepare(Fiber& f, void (*entry)()) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
}
#endif

inline void wake(int t) {
  Warp& w = warps[t / 32];
  fibers[t].status = RUNS;
  w.lanes[w.runnable++] = t;
  ++runnable;
}

// Another fiber goes on; the present one has put itself where it waits.
__attribute__((noinline)) inline void next() {
  static int warp;
  const int me = current;
  if (runnable == 0) {
    if (alive > 0) failure = "the threads wait for each other: a barrier or warp operation that not all reach";
    current = -1;
    change(me < 0 ? home : fibers[me], home);
    return;
  }
  if (me < 0 || warps[warp].runnable == 0 || draw(16) == 0) {
    const int count = (threads + 31) / 32;
    warp = draw(count);
    while (warps[warp].runnable == 0) warp = (warp + 1) % count;
  }
  Warp& w = warps[warp];
  const int k = draw(w.runnable), t = w.lanes[k];
  w.lanes[k] = w.lanes[--w.runnable];
  --runnable;
  current = t;
  if (t != me) change(me < 0 ? home : fibers[me], fibers[t]);
}

// Stop here: what would follow makes no sense, and the fibers are left as they are.
inline void fail(const char* why) {
  const int me = current;
  failure = why, current = -1;
  change(fibers[me], home);
}

inline void release() {
  if (alive == 0 || waiting < alive) return;
  waiting = 0, ++barriers;
  for (int t = 0; t < threads; ++t)
    if (fibers[t].status == AT_BARRIER) wake(t);
}

// ``line``: where in the source; all threads must be at the same one.
inline void barrier(int line) {
  static int first;
  if (waiting == 0) first = line;
  if (line != first) fail("threads are at different barriers");
  fibers[current].status = AT_BARRIER;
  ++waiting;
  release();
  next();
}

// An operation of a whole warp: the last lane to arrive does it for all.
template <class A> inline void together(const char* name, A& a, void (*operate)(A** all)) {
  Warp& w = warps[current / 32];
  if (w.arrived == 0) w.operation = name;
  if (w.operation != name) fail("the lanes of a warp are at different operations");
  w.arguments[current % 32] = &a;
  if (++w.arrived < 32) {
    fibers[current].status = IN_WARP;
    next();
    return;
  }
  w.arrived = 0;
  operate((A**)w.arguments);
  const int first = current / 32 * 32;
  for (int t = first; t < first + 32; ++t)
    if (t != current) wake(t);
}

inline void land(const Copy& c) {
  memset(c.to, 0, c.bytes);
  memcpy(c.to, c.from, c.valid);
}
inline void copy(void* to, const void* from, int bytes, int valid) {
  Fiber& f = fibers[current];
  const Copy c{to, from, bytes, valid, f.group};
  if ((uintptr_t)to % bytes || (valid && (uintptr_t)from % bytes)) failure = "a copy that is not aligned";
  if (draw(2) || f.pending == 512)
    land(c);
  else
    memset(to, 0xff, bytes), f.copies[f.pending++] = c;
}
inline void wait(int left) {
  Fiber& f = fibers[current];
  int kept = 0;
  for (int k = 0; k < f.pending; ++k)
    if (f.copies[k].group < f.group - left) land(f.copies[k]);
    else f.copies[kept++] = f.copies[k];
  f.pending = kept;
}

inline void enter() {
  body();
  wait(-1);
  fibers[current].status = DONE;
  --alive;
  release();
  next();
}

// One thread block.  Returns null, or what went wrong.
inline const char* run(int count, uint64_t seed) {
  threads = alive = count, waiting = runnable = 0, failure = nullptr, current = -1;
  random_state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
  for (int w = 0; w < (count + 31) / 32; ++w) warps[w].runnable = warps[w].arrived = 0;
  for (int t = 0; t < count; ++t) {
    Fiber& f = fibers[t];
    if (!f.stack) f.stack = (char*)malloc(STACK);
    f.thread.x = t, f.group = f.pending = 0;
    prepare(f, enter);
    wake(t);
  }
  next();
  return failure;
}
}  // namespace host

#define threadIdx host::fibers[host::current].thread
inline Place blockIdx;
#define __syncthreads() host::barrier(__LINE__)

template <class T> inline T __shfl_xor_sync(unsigned, T x, int bits) {
  struct A { T in, out; int bits; } a{x, x, bits};
  host::together<A>("shuffle", a, [](A** all) { for (int l = 0; l < 32; ++l) all[l]->out = all[l ^ all[l]->bits]->in; });
  return a.out;
}
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
