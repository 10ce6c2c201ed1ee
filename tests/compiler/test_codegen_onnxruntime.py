"""The ONNX Runtime backend: what it writes runs, keeps provenance, and refers to weights stored once."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.codegen.onnxruntime.backend import INLINE
from miaotui.compiler.errors import ModelError
from miaotui.compiler.ir.provenance import Source, set_sources, sources
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from onnx import TensorProto, helper, numpy_helper
from support.folders import mlp, program, run_mlp

BACKEND = OnnxRuntimeBackend()


def built(made: Program, folder: Path, target: Target | None = None) -> OnnxRuntimeModel:
    """Build ``made`` in ``folder`` and say what a session is made from."""
    target = Target() if target is None else target
    with WeightStore(folder / "w.bin") as weights:
        build = BACKEND.build(made, target, folder, weights)
    signature = Entry(made.inputs(), made.outputs())
    data = (folder / build.entries["main"]).read_bytes()
    return OnnxRuntimeModel(data, signature, made.dims, build.settings, target, weights=folder / "w.bin")


def test_result_equals_numpy(tmp_path: Path) -> None:
    made = mlp(width=64)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    with OnnxRuntimeRunner(built(made, tmp_path), threads=1) as runner:
        np.testing.assert_allclose(runner.run({"x": x})["y"], run_mlp(made, x)["y"], rtol=1e-5, atol=1e-4)


def test_large_tensors_lie_outside_and_small_ones_inside(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(built(mlp(width=64), tmp_path).data)
    for tensor in model.graph.initializer:
        outside = tensor.data_location == TensorProto.EXTERNAL
        assert outside == (np.prod(tensor.dims) * 4 >= INLINE)
    assert {t.name for t in model.graph.initializer} == {"w0", "b0", "w1", "b1"}


def test_building_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    made = mlp()
    before = {name: value.const_value for name, value in made.main.graph.initializers.items()}
    built(made, tmp_path)
    assert {name: value.const_value for name, value in made.main.graph.initializers.items()} == before


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert built(mlp(), folders[0]).data == built(mlp(), folders[1]).data
    assert (folders[0] / "w.bin").read_bytes() == (folders[1] / "w.bin").read_bytes()


def test_sources_of_nodes_are_kept(tmp_path: Path) -> None:
    made = mlp()
    source = Source("torch", "net.0", "aten.linear", "net.py:7")
    set_sources(next(iter(made.main.graph)), [source])
    made.main.ir_version = 8  # the version before node metadata existed
    model = ir.from_proto(onnx.load_model_from_string(built(made, tmp_path).data))
    assert sources(next(iter(model.graph))) == (source,)


def test_tensors_of_subgraphs_lie_outside_too(tmp_path: Path) -> None:
    weight = np.arange(1024, dtype=np.float32)
    then = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, [1024])],
        [numpy_helper.from_array(weight, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", 1, [1024])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "branch",
        [
            helper.make_tensor_value_info("x", 1, [1024]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", 1, [1024])],
    )
    model = built(program(graph), tmp_path)
    assert (tmp_path / "w.bin").stat().st_size == weight.nbytes
    with OnnxRuntimeRunner(model, threads=1) as runner:
        x = np.ones(1024, np.float32)
        np.testing.assert_array_equal(runner.run({"x": x, "c": np.array(True)})["y"], x + weight)
        np.testing.assert_array_equal(runner.run({"x": x, "c": np.array(False)})["y"], x)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.int8, np.uint8, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4]
)
def test_every_dtype_reads_back_through_the_session(tmp_path: Path, dtype: type) -> None:
    values: np.ndarray = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(dtype)
    made = program(
        helper.make_graph(
            [helper.make_node("Cast", ["w"], ["f"], to=1), helper.make_node("Mul", ["f", "x"], ["y"])],
            "cast",
            [helper.make_tensor_value_info("x", 1, [])],
            [helper.make_tensor_value_info("y", 1, [64, 64])],
            [numpy_helper.from_array(values, "w")],
        )
    )
    with OnnxRuntimeRunner(built(made, tmp_path), threads=1) as runner:
        np.testing.assert_array_equal(runner.run({"x": np.float32(1)})["y"], values.astype(np.float32))


def test_text_stays_inside(tmp_path: Path) -> None:
    words = np.array([f"word {i}" for i in range(500)], dtype=object)
    made = program(
        helper.make_graph(
            [helper.make_node("Gather", ["words", "i"], ["y"])],
            "text",
            [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
            [numpy_helper.from_array(words, "words")],
        )
    )
    with OnnxRuntimeRunner(built(made, tmp_path), threads=1) as runner:
        assert list(runner.run({"i": np.array([3, 4])})["y"]) == ["word 3", "word 4"]


def test_source_file_that_ends_too_soon_fails_the_build(tmp_path: Path) -> None:
    made = mlp(width=64)
    value = made.main.graph.initializers["w0"]
    (tmp_path / "short").write_bytes(b"0" * 100)
    shape = ir.Shape((64, 64))
    value.const_value = ir.ExternalTensor(
        "short", 0, 64 * 64 * 4, ir.DataType.FLOAT, shape=shape, name="w0", base_dir=tmp_path
    )
    with pytest.raises(ModelError, match="w0"):
        built(made, tmp_path)


def test_cuda_executable_is_built_without_a_gpu(tmp_path: Path) -> None:
    model = built(mlp(), tmp_path, Target("cuda", "sm_90"))
    assert model.settings["ep.cuda.use_tf32"] == "0"


def test_supports_answers_by_kernel(tmp_path: Path) -> None:
    made = mlp()
    assert all(BACKEND.supports(node, Target()) is None for node in made.main.graph)
    odd = ir.node("Frobnicate", [made.main.graph.inputs[0]], domain="acme")
    made.main.graph.append(odd)
    assert "acme.Frobnicate" in (BACKEND.supports(odd, Target()) or "")


@pytest.mark.slow
def test_model_over_two_gigabytes(tmp_path: Path) -> None:
    size = (1 << 30) + (1 << 26)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2 * size)
    rows = size // 4096
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t0", "i"], ["a"]), helper.make_node("Gather", ["t1", "a64"], ["y"])],
        "big",
        [helper.make_tensor_value_info("i", 7, ["n"]), helper.make_tensor_value_info("a64", 7, ["n"])],
        [
            helper.make_tensor_value_info("a", 1, ["n", 1024]),
            helper.make_tensor_value_info("y", 1, ["n", 1024]),
        ],
    )
    made = program(graph)
    for number in range(2):
        tensor = ir.ExternalTensor(
            "big", number * size, size, ir.DataType.FLOAT, shape=ir.Shape((rows, 1024)), name=f"t{number}",
            base_dir=tmp_path,
        )  # fmt: skip
        value = next(
            v for node in made.main.graph for v in node.inputs if v is not None and v.name == f"t{number}"
        )
        value.const_value = tensor
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), tensor.shape
        made.main.graph.initializers.add(value)
    with (tmp_path / "big").open("r+b") as file:
        file.seek(2 * size - 4)
        file.write(np.float32(7).tobytes())
    with OnnxRuntimeRunner(built(made, tmp_path), threads=1) as runner:
        out = runner.run({"i": np.array([0]), "a64": np.array([rows - 1])})
    assert out["y"][0, -1] == 7
