"""Programs compiled for CUDA, run by TVM's own CUDA runtime on the stand-in of a device.

pytest runs this file in a process of its own: see test_cuda_device.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.tvm import cuda
from miaotui.compiler.errors import DeviceError, ToolError
from miaotui.compiler.ir.builder import FLOAT16, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.runtime.compare import difference
from miaotui.runtime.device import on_gpu
from miaotui.runtime.generate.buckets import Buckets
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.generate.device_decoder import DeviceDecoder
from miaotui.runtime.tvm import TvmModel, TvmRunner
from miaotui.runtime.tvm_cuda import CudaRunner
from miaotui.runtime.tvm_device import CudaDevice
from support import tvm_programs
from support.cuda_device import Count, Device, device
from support.decode_graphs import Layers

RANDOM = np.random.default_rng(0)
TARGET = Target("cuda", "sm_90")


@pytest.fixture(scope="module", autouse=True)
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return device(tmp_path_factory.mktemp("device"))


def model(program: Program, folder: Path, target: Target = TARGET, entry: str = "main") -> TvmModel:
    build = tvm_programs.built(program, folder, target)
    return tvm_programs.model(program, build, folder, entry, target)


def opened(made: TvmModel) -> CudaRunner:
    runner = made.open()
    assert isinstance(runner, CudaRunner)
    return runner


def block(dtype: ir.DataType = FLOAT16) -> Program:
    """A product, attention with a mask that broadcasts over queries, normalization, a number per row."""
    b, kind = Builder(), dtype.numpy()
    x = b.input("x", ("batch", "tokens", 64), dtype)
    mask = b.input("mask", ("batch", 1, 1, "tokens"), ir.DataType.BOOL)
    weight = (np.random.default_rng(1).standard_normal((64, 64)) / 8).astype(kind)
    h = b.op("Add", b.op("MatMul", x, b.weight("w", weight)), b.weight("c", np.ones(64, kind)))
    h = b.op("Add", x, b.op("Attention", h, x, x, mask, q_num_heads=4, kv_num_heads=4))
    b.output(b.op("LayerNormalization", h, b.weight("s", np.ones(64, kind)), axis=-1), "y")
    b.output(b.op("ArgMax", h, axis=-1, keepdims=0), "place")
    return b.program()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TvmModel:
    return model(block(), tmp_path_factory.mktemp("block"))


@pytest.fixture
def runner(made: TvmModel) -> Iterator[CudaRunner]:
    with opened(made) as runner:
        yield runner


def given(batch: int, tokens: int) -> dict[str, Any]:
    mask = RANDOM.random((batch, 1, 1, tokens)) < 0.7
    mask[..., 0] = True
    return {"x": RANDOM.standard_normal((batch, tokens, 64)).astype(np.float16), "mask": mask}


def test_host_arrays_give_what_the_reference_does_with_one_wait(gpu: Device, runner: CudaRunner) -> None:
    for batch, tokens in ((2, 20), (1, 33), (2, 20)):
        inputs, before = given(batch, tokens), gpu.counts()
        got, wanted = runner.run(inputs), evaluate(block().main, dict(inputs))
        assert difference("y", got["y"], wanted["y"], 2e-3).ok
        assert (got["place"] == wanted["place"]).mean() > 0.9  # numbers of 16 bits have ties
        assert gpu.count(Count.syncs) - before[Count.syncs] <= 3  # freed staging waits, reading does once
    before = gpu.counts()
    runner.run(given(2, 20))
    assert gpu.count(Count.syncs) == before[Count.syncs] + 1
    assert gpu.count(Count.allocations) == before[Count.allocations]


def test_tensors_on_the_device_are_neither_copied_nor_waited_for(gpu: Device, runner: CudaRunner) -> None:
    inputs, there = given(2, 20), CudaDevice("here")
    on_device = {}
    for name, array in inputs.items():
        on_device[name] = there.empty(array.shape, array.dtype.name)
        there.write(array, on_device[name])
    wanted, before = runner.run(inputs), gpu.counts()
    found = runner.run(on_device)
    after = gpu.counts()
    assert all(on_gpu(tensor) for tensor in found.values())
    moved = (Count.to_device, Count.to_host, Count.on_device, Count.syncs)
    assert [after[c] - before[c] for c in moved] == [0, 0, 0, 0]
    for name, array in zip(found, there.read(list(found.values())), strict=True):
        np.testing.assert_array_equal(array, wanted[name])


def test_host_arrays_may_go_with_tensors_and_unaligned_ones_are_moved(
    gpu: Device, runner: CudaRunner
) -> None:
    inputs, there = given(1, 16), CudaDevice("here")
    wanted, array = runner.run(inputs), inputs["x"]
    whole = there.empty((array.size + 1,), "float16")
    part = there.at(whole, whole.data_ptr() + 2, array.shape, "float16")
    there.write(array, part)
    before = gpu.counts()
    found = runner.run({**inputs, "x": part})
    assert gpu.count(Count.on_device) == before[Count.on_device] + 1
    np.testing.assert_array_equal(there.read([found["y"]])[0], wanted["y"])


def test_runners_of_one_file_share_its_weights(gpu: Device, made: TvmModel, runner: CudaRunner) -> None:
    runner.run(given(1, 16))
    before = gpu.counts()
    with opened(made) as another:
        assert gpu.count(Count.bytes_to_device) - before[Count.bytes_to_device] < 64 * 64 * 2
        assert another.run(given(1, 16))["y"].shape == (1, 16, 64)


def test_memory_that_runs_out_is_named_and_nothing_is_lost(gpu: Device, runner: CudaRunner) -> None:
    inputs = given(1, 16)
    wanted = runner.run(inputs)["y"]
    gpu.limit(gpu.held + 4096)
    try:
        with pytest.raises(DeviceError, match=r"out of device memory.*fewer rows"):
            runner.run(given(30, 60))
    finally:
        gpu.limit(1 << 32)
    np.testing.assert_array_equal(runner.run(inputs)["y"], wanted)


def test_a_device_that_is_lost_is_named(gpu: Device, runner: CudaRunner) -> None:
    gpu.fail(700)
    try:
        with pytest.raises(DeviceError, match="was lost, and this process"):
            runner.run(given(1, 16))
    finally:
        gpu.fail(0)


def test_a_library_for_another_device_is_refused(made: TvmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ("sm_100", "sm_80a"):
        fact = rf"was compiled for {arch}, and the device is sm_90.*--target cuda:sm_90"
        with pytest.raises(ToolError, match=fact):
            replace(made, target=Target("cuda", arch)).open()
    with replace(made, target=Target("cuda", "sm_80")).open() as older:
        assert older.inputs


def test_code_that_the_device_has_no_use_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fatbin = bytes.fromhex("50ed55ba01001000") + (16).to_bytes(8, "little") + b"another machine's"[:16]
    monkeypatch.setattr(cuda, "fatbin_of", lambda *_: (fatbin, ""))
    b = Builder()
    b.output(b.op("Add", b.input("x", (4,)), b.weight("w", np.ones(4))), "y")
    refused = pytest.raises(ToolError, match=r"the library was not built for this.*--target cuda:sm_NN")
    with opened(model(b.program(), tmp_path)) as runner, refused:
        runner.run({"x": np.zeros(4, np.float32)})


def test_closing_frees_the_device(gpu: Device, tmp_path: Path) -> None:
    b = Builder()
    b.output(b.op("Add", b.input("x", (64, 1024)), b.weight("w", np.ones((64, 1024)))), "y")
    made, before = model(b.program(), tmp_path), gpu.held
    with opened(made) as runner:
        runner.run({"x": np.zeros((64, 1024), np.float32)})
        assert gpu.held > before
    held = gpu.held - before
    assert held <= 1 << 20, "only what TVM keeps for the next run"


def test_products_with_what_follows_them_give_what_the_reference_does(tmp_path: Path) -> None:
    b, kind, random = Builder(), np.float16, np.random.default_rng(2)
    x = b.input("x", ("batch", 24, 64), FLOAT16)
    weight = b.weight("w", (random.standard_normal((64, 64)) / 8).astype(kind))
    bias = b.weight("c", random.standard_normal(64).astype(kind))
    h = b.op("Gelu", b.op("Add", bias, b.op("MatMul", x, weight)))
    flat = b.op("Reshape", h, b.weight("flat", np.array([-1, 64], np.int64)))
    b.output(b.op("Relu", b.op("Gemm", flat, weight, bias, transB=1)), "gemm")
    b.output(b.op("MatMul", x, b.op("Transpose", h, perm=[0, 2, 1])), "stack")
    b.output(b.op("MatMul", b.op("Transpose", x, perm=[0, 2, 1]), h), "other stack")
    program = b.program()
    inputs = {"x": (random.standard_normal((2, 24, 64)) / 4).astype(kind)}
    with opened(model(program, tmp_path)) as runner:
        got = runner.run(inputs)
    for name, wanted in evaluate(program.main, inputs).items():
        assert difference(name, got[name], wanted, 4e-3).ok, name


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CudaRunner, TvmRunner]]:
    program, folder = Layers().program(), tmp_path_factory.mktemp("decoder")
    (folder / "cpu").mkdir()
    device_side = opened(model(program, folder, entry="decode"))
    with device_side, model(program, folder / "cpu", Target("cpu"), "decode").open(1) as host_side:
        yield device_side, host_side


def test_steps_keep_the_cache_on_the_device(gpu: Device, decoders: tuple[CudaRunner, TvmRunner]) -> None:
    on_device, on_host = decoders
    decoding = Layers().decoding()
    buckets = Buckets(on_device.memory, decoding, (*on_device.inputs, *on_device.outputs), in_place=True)
    got = DeviceDecoder(buckets, rows=2)
    wanted = Decoder(on_host, decoding, rows=2, in_place=True)
    for decoder in (got, wanted):
        decoder.prefill(0, [3, 1, 4, 1, 5], chunk=2)
        decoder.prefill(1, [2, 7])
    for number in range(6):
        assert got.tokens.tolist() == wanted.tokens.tolist()
        before = gpu.counts()
        got.step()
        if number:
            moved = {c: gpu.count(c) - before[c] for c in (Count.to_device, Count.to_host, Count.allocations)}
            assert not any(moved.values()), moved
        wanted.step()
        before = gpu.counts()
        assert got.tokens.shape == (2, 1)
        assert gpu.count(Count.bytes_to_host) - before[Count.bytes_to_host] == 16, "only the ids cross"
    np.testing.assert_allclose(got.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    got.keep([1])
    wanted.keep([1])
    got.step()
    wanted.step()
    assert got.tokens.tolist() == wanted.tokens.tolist()


def test_state_given_as_arrays_comes_back_as_arrays(decoders: tuple[CudaRunner, TvmRunner]) -> None:
    on_device, on_host = decoders
    feeds = Layers().feeds([3, 0], tokens=2)
    copies = {name: array.copy() for name, array in feeds.items()}
    got, wanted = on_device.run(feeds), on_host.run(feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, copies[name])
    assert list(got) == list(wanted)
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-4)
