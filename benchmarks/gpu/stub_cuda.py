"""Stand-in CUDA libraries, so that onnxruntime-gpu's CUDA provider opens on a machine without a GPU.

``python stub_cuda.py WHEEL_FOLDER STUBS`` compiles (gcc) one small shared library for each CUDA library
the provider links: the right sonames and symbol versions, every function returning success, memory from
malloc. Kernels can't run, but the provider registers them and claims nodes exactly as on a GPU, so its
kernel registry and its placement of a real model can be read, buffers bound and graphs "captured":

    LD_LIBRARY_PATH=STUBS PYTHONPATH=WHEEL_FOLDER python ...

WHEEL_FOLDER is an unpacked onnxruntime-gpu wheel (``pip download --no-deps onnxruntime-gpu; unzip``).
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import defaultdict
from pathlib import Path

_SUCCESS = "long %s(void*a){return 0;}"
_HANDLE = "int %s(void**p){static long x[64];*p=x;return 0;}"
_VERSION = "int %s(int*a){*a=13000;return 0;}"
_TEXT = 'const char*%s(int e){return "stub";}'
_FREE = "int %s(void*p){free(p);return 0;}"
_BODIES = {
    **dict.fromkeys(("cudaGetErrorString", "cudaGetErrorName"), _TEXT),
    **dict.fromkeys(("cudaDriverGetVersion", "cudaRuntimeGetVersion"), _VERSION),
    **dict.fromkeys(("cudaFree", "cudaFreeHost"), _FREE),
    **dict.fromkeys(
        ("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaEventCreateWithFlags",
         "cublasCreate_v2", "cublasLtCreate", "cudnnCreate"), _HANDLE),
    "cudaGetDeviceCount": "int %s(int*a){*a=1;return 0;}",
    "cudaGetDevice": "int %s(int*a){*a=0;return 0;}",
    "cudaMalloc": "int %s(void**p,size_t n){*p=aligned_alloc(256,(n+255)/256*256);return 0;}",
    "cudaMallocHost": "int %s(void**p,size_t n){*p=malloc(n);return 0;}",
    "cudaHostAlloc": "int %s(void**p,size_t n,int f){*p=malloc(n);return 0;}",
    "cudaMemcpy": "int %s(void*d,void*s,size_t n,int k){memcpy(d,s,n);return 0;}",
    "cudaMemcpyAsync": "int %s(void*d,void*s,size_t n,int k,void*t){memcpy(d,s,n);return 0;}",
    "cudaMemset": "int %s(void*d,int v,size_t n){memset(d,v,n);return 0;}",
    "cudaMemsetAsync": "int %s(void*d,int v,size_t n,void*t){memset(d,v,n);return 0;}",
    "cudaStreamEndCapture": "int %s(void*s,void**g){static long x[8];*g=x;return 0;}",
    "cudaGraphInstantiate": "int %s(void**e,void*g,long f){static long x[8];*e=x;return 0;}",
    "cudaMemGetInfo": "int %s(size_t*f,size_t*t){*f=64ul<<30;*t=80ul<<30;return 0;}",
    "cudaDeviceGetAttribute": "int %s(int*v,int a,int d){*v=a==75?9:a==76?0:a==16?132:1;return 0;}",
    # cudaDeviceProp: total memory, shared memory, warp, threads, compute capability 9.0, SM count
    "cudaGetDeviceProperties": "int %s(char*p,int d){memset(p,0,1008);strcpy(p,\"stub\");"
    "*(size_t*)(p+288)=80ul<<30;*(size_t*)(p+296)=48<<10;*(int*)(p+308)=32;*(int*)(p+320)=1024;"
    "*(int*)(p+360)=9;*(int*)(p+384)=132;return 0;}",
}  # fmt: skip
_UNVERSIONED = {"createInfer": "libnvinfer.so.10", "getInfer": "libnvinfer.so.10",
                "getPlugin": "libnvinfer.so.10", "createNvOnnx": "libnvonnxparser.so.10",
                "cuTensorMap": "libcuda.so.1"}  # fmt: skip


def build_stubs(wheel: Path, stubs: Path) -> None:
    """Compile the stand-ins for the providers in ``wheel`` into ``stubs``."""
    libraries: dict[str, dict[str, str]] = defaultdict(dict)
    versioned: set[str] = set()
    for provider in sorted((wheel / "onnxruntime" / "capi").glob("libonnxruntime_providers_*.so")):
        for needed in re.findall(r"NEEDED.*\[(lib(?:cu|nv)[^\]]*)\]", _run("readelf", "-d", str(provider))):
            libraries[needed]  # a library may be linked without one of its symbols being used
        for line in _run("nm", "-D", "--undefined-only", str(provider)).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            library = version.lstrip("@") or next(
                (v for k, v in _UNVERSIONED.items() if symbol.startswith(k)), ""
            )
            if library.startswith(("libcu", "libnv")):
                libraries[library][symbol] = _BODIES.get(symbol, _SUCCESS) % symbol
                if version:
                    versioned.add(library)
        for symbol in re.findall(
            rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes()
        ):  # found by dlsym at run time
            libraries["libcudnn.so.9"].setdefault(symbol.decode(), _SUCCESS % symbol.decode())
    stubs.mkdir(parents=True, exist_ok=True)
    for library, functions in libraries.items():
        source = stubs / f"{library}.c"
        source.write_text("\n".join(("#include <stdlib.h>", "#include <string.h>", *functions.values(), "")))
        script = stubs / f"{library}.map"
        script.write_text(f"{library} {{ global: *; }};\n")
        flags = [f"-Wl,--version-script={script}"] if library in versioned else []
        _run("gcc", "-shared", "-fPIC", "-w", "-o", str(stubs / library), str(source),
             f"-Wl,-soname,{library}", *flags)  # fmt: skip


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("stubs", type=Path)
    arguments = parser.parse_args()
    build_stubs(arguments.wheel, arguments.stubs)
