/* A CUDA block on one CPU thread: every CUDA thread is a fiber, barriers and warp instructions switch between them.
   Enough for the code that TVM makes of our kernels; PTX as the PTX ISA defines ldmatrix and mma.sync.m16n8k16. */
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define CUDART_INF_F INFINITY

#undef __global__
#undef __launch_bounds__
#define __global__
#define __launch_bounds__(...)
#define uchar unsigned char
static nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return nv_bfloat162(x, y); }

template <typename A, typename B> static auto max(A a, B b) { return a < b ? b : a; }
template <typename A, typename B> static auto min(A a, B b) { return b < a ? b : a; }

struct Index { int x, y, z; };
static Index threadIdx, blockIdx, block_shape;

struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current;
static std::vector<unsigned char> shared_bytes;
static unsigned char *shared_memory() {
  return (unsigned char *)(((uintptr_t)shared_bytes.data() + 127) / 128 * 128);
}

static void give_way() { swapcontext(&fibers[current].context, &scheduler); }

struct Barrier {
  int arrived = 0, round = 0;
  void wait(int of) {
    int mine = round;
    if (++arrived == of) { arrived = 0; ++round; return; }
    while (round == mine) give_way();
  }
};
static Barrier block_barrier, warp_barrier[32];
static void __syncthreads() { block_barrier.wait((int)fibers.size()); }
static int lane() { return current % 32; }
static int warp() { return current / 32; }
static int warp_size() { return min((int)fibers.size() - warp() * 32, 32); }
static void __syncwarp() { warp_barrier[warp()].wait(warp_size()); }

static uintptr_t addresses[32][32];
static unsigned left_of[32][32][4], right_of[32][32][2];
static unsigned long long words[32][32];

static void ldmatrix(bool turn, unsigned &r0, unsigned &r1, unsigned &r2, unsigned &r3, uintptr_t address) {
  addresses[warp()][lane()] = address;
  __syncwarp();
  unsigned *out[4] = {&r0, &r1, &r2, &r3};
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      int row = turn ? 2 * (lane() % 4) + e : lane() / 4, column = turn ? lane() / 4 : 2 * (lane() % 4) + e;
      pair[e] = ((const uint16_t *)addresses[warp()][8 * m + row])[column];
    }
    std::memcpy(out[m], pair, 4);
  }
  __syncwarp();
}

template <typename T> static float number(unsigned word, int half) {
  T value;
  std::memcpy(&value, (char *)&word + 2 * half, 2);
  return (float)value;
}

template <typename T>
static void mma(float &d0, float &d1, float &d2, float &d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                unsigned b0, unsigned b1, float c0, float c1, float c2, float c3) {
  unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  std::memcpy(left_of[warp()][lane()], a, 16);
  std::memcpy(right_of[warp()][lane()], b, 8);
  __syncwarp();
  float sums[4] = {c0, c1, c2, c3}, *out[4] = {&d0, &d1, &d2, &d3};
  for (int s = 0; s < 4; ++s) {
    int i = lane() / 4 + 8 * (s / 2), n = 2 * (lane() % 4) + s % 2;
    for (int k = 0; k < 16; ++k) {
      unsigned from_a = left_of[warp()][i % 8 * 4 + k % 8 / 2][i / 8 + 2 * (k / 8)];
      unsigned from_b = right_of[warp()][n * 4 + k % 8 / 2][k / 8];
      sums[s] += number<T>(from_a, k % 2) * number<T>(from_b, k % 2);
    }
    *out[s] = sums[s];
  }
  __syncwarp();
}

/* What a thread of the warp holds; its own where there is no such thread. */
template <typename T> static T from_lane(T value, int other) {
  std::memcpy(&words[warp()][lane()], &value, sizeof(T));
  __syncwarp();
  T found = value;
  if (other >= 0 && other < warp_size()) std::memcpy(&found, &words[warp()][other], sizeof(T));
  __syncwarp();
  return found;
}
static float from_lane_xor(float value, int mask) { return from_lane(value, lane() ^ mask); }
template <typename T> static T __shfl_sync(unsigned, T value, int from, int = 32) { return from_lane(value, from); }
template <typename T> static T __shfl_down_sync(unsigned, T value, int by, int = 32) { return from_lane(value, lane() + by); }
template <typename T> static T __shfl_up_sync(unsigned, T value, int by, int = 32) { return from_lane(value, lane() - by); }
static unsigned __activemask() { return ~0u; }

/* Copies arrive when they are waited for, not before: a kernel that waits for too few reads old numbers. */
struct Copy { void *to; const void *from; bool there; };
static std::vector<std::vector<std::vector<Copy>>> groups;
static void copy_or_zero(void *to, const void *from, bool there) { groups[current].back().push_back({to, from, there}); }
static void copies_end() { groups[current].emplace_back(); }
static void wait_for_copies(int but) {
  auto &mine = groups[current];
  while ((int)mine.size() - 1 > but) {
    for (auto &c : mine.front()) { if (c.there) std::memcpy(c.to, c.from, 16); else std::memset(c.to, 0, 16); }
    mine.erase(mine.begin());
  }
}

static void (*body)(void **);
static void **arguments;
static void start() { body(arguments); fibers[current].done = true; give_way(); }

static Index index_of(int thread) {
  return {thread % block_shape.x, thread / block_shape.x % block_shape.y, thread / block_shape.x / block_shape.y};
}

static void run_fibers(int threads) {
  fibers.resize(threads);
  groups.assign(threads, {{}});
  for (int i = 0; i < threads; ++i) {
    fibers[i].stack.resize(256 << 10);
    fibers[i].done = false;
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack.data();
    fibers[i].context.uc_stack.ss_size = fibers[i].stack.size();
    fibers[i].context.uc_link = &scheduler;
    makecontext(&fibers[i].context, start, 0);
  }
  for (int left = threads; left;) {
    left = 0;
    for (current = 0; current < threads; ++current) {
      if (fibers[current].done) continue;
      threadIdx = index_of(current);
      swapcontext(&scheduler, &fibers[current].context);
      left += !fibers[current].done;
    }
  }
}

/* Without fibers, which only threads need that wait for each other, a block is a loop. */
static void run_blocks(void (*kernel)(void **), void **given, Index grid, Index block, size_t shared, bool with_fibers) {
  body = kernel;
  arguments = given;
  block_shape = block;
  int threads = block.x * block.y * block.z;
  for (int z = 0; z < grid.z; ++z) for (int y = 0; y < grid.y; ++y) for (int x = 0; x < grid.x; ++x) {
    blockIdx = {x, y, z};
    shared_bytes.assign(shared + 256, 0xFF); /* NaN, if it is read before it is written */
    if (with_fibers) {
      run_fibers(threads);
    } else {
      for (int i = 0; i < threads; ++i) { threadIdx = index_of(i); body(arguments); }
    }
  }
}

static void run_grid(void (*kernel)(void **), void **given, int gx, int gy, int gz, int threads, size_t shared) {
  run_blocks(kernel, given, {gx, gy, gz}, {threads, 1, 1}, shared, true);
}

/* What a library of kernels tells the device of cuda_device.cpp. */
struct HostKernel { void (*call)(void **); int fibers, count; const int *sizes; };
extern "C" void launch_host(const HostKernel *kernel, void **given, const int *shape, size_t shared) {
  Index grid = {shape[0], shape[1], shape[2]}, block = {shape[3], shape[4], shape[5]};
  run_blocks(kernel->call, given, grid, block, shared, kernel->fibers);
}
