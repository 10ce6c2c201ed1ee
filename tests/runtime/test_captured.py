"""Runs over static buffers: which are captured and replayed, that they compute the same, and what refuses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from miaotui.compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from miaotui.compiler.errors import CompileError, DeviceError
from miaotui.compiler.ir.builder import FLOAT, INT64, Builder
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.program import TensorSpec
from miaotui.compiler.weights import WeightStore
from miaotui.runtime.captured import GRAPHS, Captured, foretold, run_tensors
from miaotui.runtime.device_memory import Buffer
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from miaotui.runtime.onnxruntime_memory import OrtMemory

WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


class Counted(OrtMemory):
    """Main memory in the place of a device's; which graphs run, and a failure of the next run."""

    graphs: list[int | None]
    failure: CompileError | None = None

    def run(self, binding: Any, graph: int | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        self.graphs.append(graph)
        super().run(binding, graph)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[OnnxRuntimeRunner]:
    b = Builder()
    y = b.op("MatMul", b.input("x", ("batch", "tokens", 6)), b.weight("w", WEIGHT))
    b.output(b.op("Where", b.input("keep", ("batch", "tokens", 1), ir.DataType.BOOL), y, b.op("Neg", y)), "y")
    program = b.program()
    with WeightStore(tmp_path / "weights.bin") as store:
        build = OnnxRuntimeBackend().build(program, Target(), tmp_path, store)
    data = (tmp_path / build.entries["main"]).read_bytes()
    signature = Entry(program.inputs(), program.outputs())
    made = OnnxRuntimeRunner(OnnxRuntimeModel(data, signature, weights=tmp_path / "weights.bin"), threads=1)
    memory = Counted(ort, made._session, "cpu", "CPUExecutionProvider", "m", captures=True)
    memory.graphs = []
    made.__dict__["memory"] = memory
    made._captured = Captured(memory, made.inputs, made.outputs)
    with made:
        yield made


def memory_of(runner: OnnxRuntimeRunner) -> Counted:
    assert isinstance(runner.memory, Counted)
    return runner.memory


def feed(seed: int, batch: int = 2, tokens: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, tokens, 6)).astype(np.float32)
    return {"x": x, "keep": random.random((batch, tokens, 1)) < 0.5}


def right(given: dict[str, np.ndarray]) -> np.ndarray:
    product = given["x"] @ WEIGHT
    return np.where(given["keep"], product, -product)


def test_sizes_that_come_again_are_captured_each_as_a_graph_of_its_own(runner: OnnxRuntimeRunner) -> None:
    for seed, tokens in enumerate((4, 4, 9, 4, 9, 9)):
        given = feed(seed, tokens=tokens)
        np.testing.assert_allclose(runner.run(given)["y"], right(given), rtol=1e-5, atol=1e-6)
    assert memory_of(runner).graphs == [1, 1, 2, 2]


def test_what_a_run_gave_stays_when_the_next_one_writes_the_same_buffers(runner: OnnxRuntimeRunner) -> None:
    given = [feed(seed) for seed in range(4)]
    found = [runner.run(each)["y"] for each in given]
    for each, y in zip(given, found, strict=True):
        np.testing.assert_allclose(y, right(each), rtol=1e-5, atol=1e-6)


def test_threads_get_each_their_own(runner: OnnxRuntimeRunner) -> None:
    given = [feed(seed, tokens=3 + seed % 2) for seed in range(24)]
    with ThreadPoolExecutor(4) as threads:
        for each, made in zip(given, threads.map(runner.run, given), strict=True):
            np.testing.assert_allclose(made["y"], right(each), rtol=1e-5, atol=1e-6)


def test_tensors_are_copied_where_they_lie(runner: OnnxRuntimeRunner) -> None:
    captured = runner._captured
    assert captured is not None
    runner.run(feed(0))
    given = feed(1)
    found = run_tensors(captured, {name: torch.from_numpy(array) for name, array in given.items()}, "cpu")
    assert found is not None and isinstance(found["y"], torch.Tensor)
    again = run_tensors(captured, feed(2), "cpu")  # arrays may go with tensors, and nothing is shared
    assert again is not None and memory_of(runner).graphs == [1, 1]
    np.testing.assert_allclose(found["y"].numpy(), right(given), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again["y"].numpy(), right(feed(2)), rtol=1e-5, atol=1e-6)


def test_a_session_that_refuses_runs_plainly_and_a_lost_device_is_an_error(runner: OnnxRuntimeRunner) -> None:
    memory, captured = memory_of(runner), runner._captured
    assert captured is not None
    runner.run(feed(0))
    memory.failure = DeviceError("m", "out of device memory")
    with pytest.raises(DeviceError):
        runner.run(feed(1))
    memory.failure = CompileError("m", "operation not permitted when stream is capturing")
    np.testing.assert_allclose(runner.run(feed(1))["y"], right(feed(1)), rtol=1e-5, atol=1e-6)
    memory.failure = None
    runner.run(feed(2))
    assert memory.graphs == [] and "not permitted" in captured.refusal


def test_no_more_sizes_are_captured_than_graphs_are_kept(runner: OnnxRuntimeRunner) -> None:
    for tokens in range(1, GRAPHS + 3):
        for seed in range(2):
            given = feed(seed, tokens=tokens)
            np.testing.assert_allclose(runner.run(given)["y"], right(given), rtol=1e-5, atol=1e-6)
    assert memory_of(runner).graphs == list(range(1, GRAPHS + 1))


def test_nothing_is_captured_whose_sizes_are_not_known_before() -> None:
    x, ids = TensorSpec("x", FLOAT, ("batch", 3)), TensorSpec("ids", INT64, ("batch",))
    assert foretold([x, ids], [TensorSpec("y", FLOAT, ("batch", 7))])
    for dim in ("found", None):
        assert not foretold([x], [TensorSpec("y", FLOAT, (dim, 7))])
    for spec in (TensorSpec("s", ir.DataType.STRING, ("batch",)), TensorSpec("s", FLOAT, ())):
        assert not foretold([x, spec], [x]) and not foretold([x], [spec])
    assert not foretold([x], [TensorSpec("y", FLOAT, None)])


def test_empty_ones_run_plainly(runner: OnnxRuntimeRunner) -> None:
    for _ in range(3):
        assert runner.run(feed(0, tokens=0))["y"].shape == (2, 0, 3)
    assert memory_of(runner).graphs == []


def test_a_buffer_is_what_captures_write_to(runner: OnnxRuntimeRunner) -> None:
    runner.run(feed(0))
    seen: list[Buffer] = []

    def put(buffer: Buffer, array: np.ndarray) -> None:
        seen.append(buffer)
        runner.memory.write(buffer, array)

    captured = runner._captured
    assert captured is not None
    for seed in (1, 2):
        assert captured.run(feed(seed), put, runner.memory.read) is not None
    assert [buffer.address for buffer in seen[:2]] == [buffer.address for buffer in seen[2:]]
