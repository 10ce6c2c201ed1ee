"""What CUDA, cuDNN, ONNX Runtime and TVM say when a device fails, as facts with a fix: a table of texts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..compiler.errors import CompileError, DeviceError, ToolError

_PROVIDER = "pip install 'onnxruntime-gpu[cuda,cudnn]', then `miaotui doctor`"


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind of failure. ``texts``: patterns of messages, any of them; ``error``: what is raised.

    ``fact`` may have a group of the pattern that matched in it, by its name. ``tvm``: the fix where the code
    is TVM's, if it is another.
    """

    name: str
    texts: tuple[str, ...]
    fact: str
    fix: str
    error: type[CompileError] = DeviceError
    tvm: str = ""


FAILURES: tuple[Failure, ...] = (
    Failure(
        "driver too old",
        (
            r"CUDA driver version is insufficient",
            r"CUDA failure (?:35|803)\b",
            r"cudaErrorInsufficientDriver|cudaErrorSystemDriverMismatch",
        ),
        "the NVIDIA driver is older than the CUDA that {by} was built for",
        "update the driver, or install an onnxruntime-gpu for its CUDA; `miaotui doctor` tells both versions",
        ToolError,
        "update the driver: TVM's runtime wants CUDA 13",
    ),
    Failure(
        "no device",
        (
            r"no CUDA-capable device",
            r"CUDA failure (?:100|101)\b",
            r"cudaErrorNoDevice|invalid device ordinal",
            r"libcuda\.so[.\d]*: cannot open",
        ),
        "no NVIDIA device can be seen",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES; compiling for cuda works without one",
        ToolError,
    ),
    Failure(
        "no cuDNN",
        (
            r"(?P<library>libcudnn[\w.]*|cudnn\w*\.dll)\b.*?(?:cannot open|not found|missing)",
            r"(?:Unable to load|Could not load library|Could not locate|Cannot load symbol).{0,20}?cudnn",
            r"CUDNN(?:_STATUS)?_(?:NOT_INITIALIZED|VERSION_MISMATCH|SUBLIBRARY\w*)",
        ),
        "cuDNN is missing or of another version than ONNX Runtime wants",
        _PROVIDER,
        ToolError,
    ),
    Failure(
        "no CUDA library",
        (
            r"(?P<library>lib(?:cublas|cudart|cufft|curand|nvrtc|nvJitLink)[\w.]*): cannot open",
            r"Failed to load library.*?onnxruntime_providers_cuda",
            r"Failed to create CUDAExecutionProvider",
        ),
        "a library of CUDA is missing",
        _PROVIDER,
        ToolError,
    ),
    Failure(
        "out of memory",
        (
            r"CUDA failure 2\b",
            r"CUDA failure \d+: out of memory",
            r"CUDA(?: Runtime Error)?: out of memory|CUDA_ERROR_OUT_OF_MEMORY",
            r"cudaErrorMemoryAllocation|CUDA out of memory",
            r"CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED",
            r"Failed to allocate memory for requested buffer of size (?P<size>\d+)",
            r"Available memory of \d+ is smaller than requested bytes of (?P<size>\d+)",
        ),
        "out of device memory",
        "run fewer rows or shorter prompts, or compile with --precision fp16, int8 or int4",
    ),
    Failure(
        "device lost",
        (
            r"CUDA failure (?:46|79|214|219|220|226|700|702|710|714|715|716|717|718|719|999)\b",
            r"cudaError(?:IllegalAddress|LaunchFailure|DevicesUnavailable|ECCUncorrectable|LaunchTimeout)",
            r"unspecified launch failure|an illegal memory access was encountered|GPU is lost"
            r"|uncorrectable ECC error|device\(s\) is/are busy or unavailable",
            r"CUDA_ERROR_(?:ILLEGAL_|LAUNCH_|MISALIGNED_|ECC_|HARDWARE_|DEVICE_UNAVAILABLE|CONTEXT_IS_DESTROYED)",
        ),
        "the device failed or was lost, and this process can't use it any more",
        "start the process again; if it comes back, look for Xid errors in dmesg and at nvidia-smi -q",
    ),
    Failure(
        "no kernel for the device",
        (
            r"no kernel image is available|CUDA failure 209\b|cudaErrorNoKernelImageForDevice",
            r"CUDA_ERROR_(?:NO_BINARY_FOR_GPU|INVALID_PTX|UNSUPPORTED_PTX_VERSION)",
        ),
        "{by} was not built for this generation of device",
        "install the newest onnxruntime-gpu; it wants compute capability 7.5 or more",
        ToolError,
        "compile it with --target cuda:sm_NN for the device",
    ),
)
"""In the order they are tried: a cause before what follows from it.

Numbers: cudaError_t of CUDA 13. Texts: CudaCall, BFCArena and the loader of providers in ONNX Runtime 1.31.
"""


def device_failure(text: str, place: str, by: str = "ONNX Runtime") -> CompileError | None:
    """The error that ``text``, a message of ``by`` or of CUDA, stands for; None if it is of no device."""
    for failure in FAILURES:
        for pattern in failure.texts:
            match = re.search(pattern, text, re.DOTALL)
            if match is not None:
                who = "the library" if by == "TVM" and failure.name == "no kernel for the device" else by
                fix = (by == "TVM" and failure.tvm) or failure.fix
                return failure.error(place, failure.fact.format(by=who) + _detail(match, text), fix)
    return None


def _detail(match: re.Match[str], text: str) -> str:
    """What is known besides: how much was asked for, which library, which call."""
    found = match.groupdict()
    if found.get("size"):
        return f": {int(found['size']) / 1e6:,.1f} MB more were asked for"
    if found.get("library"):
        return f": {found['library']}"
    number = re.search(r"(CUDA|CUDNN|CUBLAS) failure (\d+)(?:: ([^;]*?))? *;", text)
    call = re.search(r"; expr=(\w+)", text)
    if number is None:
        return ""
    said = f" ({number[1]} error {number[2]}" + (f", {number[3]}" if number[3] else "")
    return said + (f", in {call[1]})" if call is not None else ")")
