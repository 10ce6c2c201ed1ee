"""Failures of a device get a name, a fact and a fix; the texts are those of ONNX Runtime and CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
from miaotui.compiler.errors import CompileError, DeviceError
from miaotui.runtime.device_errors import FAILURES, device_failure
from miaotui.runtime.messages import translated
from miaotui.runtime.onnxruntime import not_started

CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:122 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, "
    "const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] "
)
"""What stands in front of a failed call of CUDA."""

RUNNING = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running "

TEXTS = {
    "driver too old": [
        CALL + "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; "
        "hostname=c4327188c000000 ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
        "cuda_execution_provider.cc ; line=336 ; expr=cudaSetDevice(info_.device_id); ",
        CALL + "CUDA failure 803: system has unsupported display driver / cuda driver combination ; GPU=-1 ; "
        "hostname=a ; file=x.cc ; line=1 ; expr=cudaSetDevice(info_.device_id); ",
    ],
    "no device": [
        CALL + "CUDA failure 100: no CUDA-capable device is detected ; GPU=32764 ; hostname=a ; "
        "file=x.cc ; line=280 ; expr=cudaSetDevice(info_.device_id); ",
        "libcuda.so.1: cannot open shared object file: No such file or directory",
    ],
    "no cuDNN": [
        "libcudnn.so.9: cannot open shared object file: No such file or directory",
        "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2195 onnxruntime::Provider& "
        "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
        "libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared object file: No such "
        "file or directory",
        "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=a ; file=/onnxruntime_src/"
        "onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=183 ; "
        "expr=cudnnCreate(&cudnn_handle_); ",
        "Could not load library libcudnn_ops_infer.so.8. Error: libcudnn_ops_infer.so.8: cannot open shared "
        "object file: No such file or directory",
    ],
    "no CUDA library": [
        "libcublasLt.so.13: cannot open shared object file: No such file or directory",
        "Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*. Please install all "
        "dependencies as mentioned in the GPU requirements page",
    ],
    "out of memory": [
        RUNNING + "Conv node. Name:'/blocks.0/fc1/Conv' Status Message: /onnxruntime_src/onnxruntime/core/"
        "framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, "
        "onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Failed to allocate memory for "
        "requested buffer of size 8388608000\n",
        CALL + "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; file=/onnxruntime_src/onnxruntime/core/"
        "providers/cuda/cuda_allocator.cc ; line=33 ; expr=cudaMalloc((void**)&p, size); ",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=a ; file=x.cc ; line=181 ; "
        "expr=cublasCreate(&cublas_handle_); ",
        "bfc_arena.cc:348 Available memory of 24576 is smaller than requested bytes of 3221225472",
    ],
    "device lost": [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a ; file=x.cc ; "
        "line=446 ; expr=cudaStreamSynchronize(static_cast<cudaStream_t>(stream_)); ",
        CALL + "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=a ; file=x.cc ; line=99 ; "
        "expr=cudaMemcpyAsync(dst_data, src_data, bytes, cudaMemcpyDeviceToHost, stream); ",
        "CUDA failure 999: unknown error ; GPU=192915439 ; expr=cudaSetDevice(info_.device_id); ",
        "CUDA failure 214: uncorrectable ECC error encountered ; GPU=0 ; hostname=a ; file=x.cc ; line=9 ; "
        "expr=cudaStreamSynchronize(stream); ",
        "CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable ; GPU=0 ; hostname=a ; "
        "file=x.cc ; line=9 ; expr=cudaSetDevice(info_.device_id); ",
    ],
    "no kernel for the device": [
        "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_the_texts_of_the_libraries_have_a_name(name: str, text: str) -> None:
    [expected] = [failure for failure in FAILURES if failure.name == name]
    found = device_failure(text, "model")
    assert found is not None and type(found) is expected.error
    [problem] = found.problems
    assert problem.place == "model" and problem.fact.startswith(expected.fact.format(by="ONNX Runtime"))
    assert problem.fix == expected.fix and "_src" not in str(found)


def test_every_failure_has_a_text_here() -> None:
    assert set(TEXTS) == {failure.name for failure in FAILURES}


def test_the_fact_has_the_size_the_node_and_the_call() -> None:
    error = RuntimeError(TEXTS["out of memory"][0])
    assert str(translated(error, "m (cuda-ort)", "cuda")).startswith(
        "m (cuda-ort): node '/blocks.0/fc1/Conv' (Conv): out of device memory: 8,388.6 MB more were asked "
        "for; run fewer rows"
    )
    lost = translated(RuntimeError(TEXTS["device lost"][1]), "m", "cuda")
    assert "(CUDA error 719, unspecified launch failure, in cudaMemcpyAsync)" in str(lost)
    assert isinstance(lost, DeviceError) and lost.exit_code == 1
    assert "libcublasLt.so.13" in str(device_failure(TEXTS["no CUDA library"][0], "m"))


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x",
        "Non-zero status code returned while running Gather node. Name:'g' Status Message: indices element "
        "out of data bounds, idx=700 must be within the inclusive range [-4,3]",
        "Failed to find kernel for Tan(21)",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert device_failure(text, "m") is None
    assert type(translated(RuntimeError(text), "m", "cuda")) is CompileError


def test_on_the_cpu_an_arena_is_main_memory() -> None:
    error = translated(RuntimeError(TEXTS["out of memory"][0]), "m")
    assert not isinstance(error, DeviceError) and "give smaller inputs" in str(error)


def test_a_provider_that_does_not_load_tells_which_library_it_misses(tmp_path: Path) -> None:
    provider = tmp_path / "libonnxruntime_providers_cuda.so"
    assert "a CUDA library, cuDNN or the driver is missing" in str(not_started(provider))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CUDA: out of memory", "out of device memory; run fewer rows"),
        ("CUDA Runtime Error: out of memory", "out of device memory; run fewer rows"),
        ("CUDALaunch Error: CUDA_ERROR_ILLEGAL_ADDRESS\n grid=(1,1,1)", "the device failed or was lost"),
        (
            "cuModuleLoadData(…) failed with error: CUDA_ERROR_NO_BINARY_FOR_GPU",
            "the library was not built for this generation of device; compile it with --target cuda:sm_NN",
        ),
        (
            "CUDA: CUDA driver version is insufficient for CUDA runtime version",
            "older than the CUDA that TVM",
        ),
    ],
)
def test_what_tvm_says_gets_tvms_fix(text: str, said: str) -> None:
    assert str(device_failure(text, "m", "TVM")).startswith("m: ")
    assert said in str(device_failure(text, "m", "TVM"))
    assert "onnxruntime" not in str(device_failure(text, "m", "TVM"))
