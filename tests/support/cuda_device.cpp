/* A CUDA device that is none: the runtime and driver functions that TVM's CUDA runtime calls, over main memory.
   Device memory can't be touched but by what runs on the "device"; whatever is started waits until something
   synchronizes, so that a host that reads too early reads old bytes. Code is a library of cuda_on_cpu.h's kernels. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

struct HostKernel { void (*call)(void **); int fibers, count; const int *sizes; };
typedef void (*Launch)(const HostKernel *, void **, const int *, size_t);
struct Function { const HostKernel *kernel; Launch launch; };
struct Module { void *library; std::vector<Function *> functions; };
typedef std::vector<std::function<void()>> Work;

static std::recursive_mutex mutex;
static const size_t ARENA = (size_t)4 << 30;
static char *arena;
static std::map<char *, size_t> used;
static size_t limit = ARENA, held;
static Work queue, *captured;
static cudaError_t failure = cudaSuccess, last = cudaSuccess;
enum { TO_DEVICE, TO_HOST, ON_DEVICE, BYTES_TO_DEVICE, BYTES_TO_HOST, LAUNCHES, SYNCS, ALLOCATIONS, REPLAYS, COUNTS };
static long long counts[COUNTS];

#define API extern "C"
#define HELD std::lock_guard<std::recursive_mutex> guard(mutex)
static cudaError_t said(cudaError_t error) { if (error) last = error; return error; }
static bool on_device(const void *p) { return p >= arena && p < arena + ARENA; }
static void allowed(bool yes) { mprotect(arena, ARENA, yes ? PROT_READ | PROT_WRITE : PROT_NONE); }

static cudaError_t finish() {
  if (captured) return said(cudaErrorStreamCaptureUnsupported);
  ++counts[SYNCS];
  Work now;
  now.swap(queue);
  if (!now.empty()) {
    allowed(true);
    for (auto &work : now) work();
    allowed(false);
  }
  return said(failure);
}
static void put(std::function<void()> work) { (captured ? *captured : queue).push_back(work); }

API long long device_count(int which) { HELD; return counts[which]; }
API void device_limit(size_t bytes) { HELD; limit = bytes; }
API void device_fails(int error) { HELD; failure = (cudaError_t)error; }
API long long device_bytes() { HELD; return held; }

API cudaError_t cudaGetDeviceCount(int *n) {
  if (!arena) arena = (char *)mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  *n = getenv("CUDA_DEVICES_GONE") ? 0 : 1;
  return *n ? cudaSuccess : said(cudaErrorNoDevice);
}
API cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
API cudaError_t cudaSetDevice(int d) { int n; cudaGetDeviceCount(&n); return d < n ? cudaSuccess : said(cudaErrorInvalidDevice); }
API cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
  switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 48 << 10; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    default: *v = 1;
  }
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "none");
  p->totalGlobalMem = limit, p->major = 9, p->warpSize = 32;
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { HELD; *f = limit - held, *t = limit; return cudaSuccess; }
API cudaError_t cudaMalloc(void **p, size_t size) {
  HELD;
  if (captured) return said(cudaErrorStreamCaptureUnsupported);
  size_t whole = (size / 4096 + 1) * 4096;
  if (held + whole > limit) return said(cudaErrorMemoryAllocation);
  char *at = arena;
  for (auto &[start, taken] : used) {
    if ((size_t)(start - at) >= whole) break;
    at = start + taken;
  }
  if (at + whole > arena + ARENA) return said(cudaErrorMemoryAllocation);
  used[at] = whole, held += whole, ++counts[ALLOCATIONS];
  *p = at;
  return cudaSuccess;
}
API cudaError_t cudaFree(void *p) {
  HELD;
  if (!p) return cudaSuccess;
  finish();
  held -= used[(char *)p];
  used.erase((char *)p);
  return cudaSuccess;
}
API cudaError_t cudaMallocHost(void **p, size_t size) { *p = malloc(size); return cudaSuccess; }
API cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, cudaStream_t) {
  HELD;
  bool there = on_device(to), here = on_device(from);
  ++counts[there && here ? ON_DEVICE : there ? TO_DEVICE : TO_HOST];
  if (there && !here) counts[BYTES_TO_DEVICE] += n;
  if (here && !there) counts[BYTES_TO_HOST] += n;
  if (there && !here) { /* pageable memory is taken before the call returns */
    std::string bytes((const char *)from, n);
    put([=] { memcpy(to, bytes.data(), n); });
  } else {
    put([=] { memcpy(to, from, n); });
  }
  return cudaSuccess;
}
API cudaError_t cudaMemcpy2DAsync(void *to, size_t wide, const void *from, size_t narrow, size_t width, size_t rows, cudaMemcpyKind, cudaStream_t) {
  HELD;
  ++counts[ON_DEVICE];
  put([=] { for (size_t r = 0; r < rows; ++r) memcpy((char *)to + r * wide, (const char *)from + r * narrow, width); });
  return cudaSuccess;
}
API cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t n, cudaStream_t s) { return cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, s); }
API cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t) { HELD; put([=] { memset(to, value, n); }); return cudaSuccess; }
API cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = (cudaStream_t)malloc(8); return cudaSuccess; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
API cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { HELD; return finish(); }
API cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  HELD;
  if (!s || captured) return said(cudaErrorStreamCaptureUnsupported);
  captured = new Work;
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g) { HELD; *g = (cudaGraph_t)captured; captured = nullptr; return cudaSuccess; }
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long) { *e = (cudaGraphExec_t) new Work(*(Work *)g); return cudaSuccess; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t) {
  HELD;
  ++counts[REPLAYS];
  for (auto &work : *(Work *)e) queue.push_back(work);
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete (Work *)g; return cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete (Work *)e; return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = (cudaEvent_t)malloc(8); return cudaSuccess; }
API cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { HELD; return finish(); }
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { *ms = 1; return cudaSuccess; }
API cudaError_t cudaGetLastError() { HELD; cudaError_t e = last; last = cudaSuccess; return e; }
API cudaError_t cudaPeekAtLastError() { HELD; return last; }

static const struct { int code; const char *name, *text; } ERRORS[] = {
  {0, "cudaSuccess", "no error"}, {2, "cudaErrorMemoryAllocation", "out of memory"},
  {100, "cudaErrorNoDevice", "no CUDA-capable device is detected"}, {101, "cudaErrorInvalidDevice", "invalid device ordinal"},
  {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
  {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"}, {700, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
  {900, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}};
static const char *text_of(int code, bool name) {
  for (auto &e : ERRORS) if (e.code == code) return name ? e.name : e.text;
  return "unknown error";
}
API const char *cudaGetErrorName(cudaError_t e) { return text_of(e, true); }
API const char *cudaGetErrorString(cudaError_t e) { return text_of(e, false); }
API CUresult cuGetErrorName(CUresult e, const char **s) { *s = text_of(e, true); return CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult e, const char **s) { *s = text_of(e, false); return CUDA_SUCCESS; }
API CUresult cuDeviceGetName(char *name, int n, CUdevice) { snprintf(name, n, "none"); return CUDA_SUCCESS; }

API CUresult cuModuleLoadData(CUmodule *m, const void *image) {
  const char *bytes = (const char *)image;
  size_t size = *(const size_t *)(bytes + 8);
  if (memcmp(bytes + 16, "\177ELF\2\1\1", 7)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  int file = memfd_create("kernels", 0);
  if (write(file, bytes + 16, size) != (ssize_t)size) return CUDA_ERROR_INVALID_IMAGE;
  void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); return CUDA_ERROR_NO_BINARY_FOR_GPU; }
  *m = (CUmodule) new Module{library, {}};
  return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  auto *module = (Module *)m;
  auto *kernel = (const HostKernel *)dlsym(module->library, (std::string(name) + "_host").c_str());
  if (!kernel) return CUDA_ERROR_NOT_FOUND;
  module->functions.push_back(new Function{kernel, (Launch)dlsym(module->library, "launch_host")});
  *f = (CUfunction)module->functions.back();
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **args, void **) {
  HELD;
  auto *function = (Function *)f;
  if (!c->gridDimX || !c->gridDimY || !c->gridDimZ) return CUDA_ERROR_INVALID_VALUE;
  std::vector<std::string> values;
  for (int i = 0; i < function->kernel->count; ++i) values.emplace_back((char *)args[i], function->kernel->sizes[i]);
  std::vector<int> shape{(int)c->gridDimX, (int)c->gridDimY, (int)c->gridDimZ, (int)c->blockDimX, (int)c->blockDimY, (int)c->blockDimZ};
  size_t shared = c->sharedMemBytes;
  ++counts[LAUNCHES];
  put([=] {
    std::vector<void *> given;
    for (auto &v : values) given.push_back((void *)v.data());
    function->launch(function->kernel, given.data(), shape.data(), shared);
  });
  return CUDA_SUCCESS;
}
