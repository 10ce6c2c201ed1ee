"""The ONNX Runtime runner: inputs are checked at once, whatever holds them; errors are in our words."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.artifact import Artifact
from miaotui.compiler.errors import ArtifactError, CompileError, InputError, ToolError, UnsupportedError
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.program import DimRange, TensorSpec
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from miaotui.runtime.session import model_of, open_runner
from miaotui.runtime.validate import checked
from onnx import TensorProto, helper
from support.folders import mlp, run_mlp, write_folder

FLOAT, INT = ir.DataType.FLOAT, ir.DataType.INT64
SPECS = (TensorSpec("ids", INT, ("batch", "length")), TensorSpec("scale", FLOAT, ("batch", 3)))
DIMS = {"length": DimRange(1, 16)}
IDS, SCALE = np.zeros((2, 5), np.int64), np.zeros((2, 3), np.float32)
IDS32, SCALE16 = IDS.astype(np.int32), SCALE.astype(np.float16)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("runner") / "m"
    write_folder(folder)
    return Artifact(folder)


@pytest.mark.parametrize(
    ("inputs", "facts"),
    [
        ({"ids": IDS}, ["input 'scale': is missing; give scale: float32[batch, 3]"]),
        ({"ids": IDS, "scael": SCALE}, ["'scale': is missing", "'scael': does not exist;"]),
        ({"ids": IDS32, "scale": SCALE}, ["is int32, not int64; convert it with"]),
        ({"ids": IDS, "scale": SCALE.astype(np.float64)}, ["is float64, not float32"]),
        ({"ids": IDS[0], "scale": SCALE}, ["has rank 1, not 2"]),
        ({"ids": IDS, "scale": SCALE[:, :2]}, ["has size 2 along axis 1, not 3"]),
        ({"ids": IDS, "scale": SCALE[:1]}, ["has batch=1 along axis 0, but input 'ids' has batch=2"]),
        ({"ids": np.zeros((2, 17), np.int64), "scale": SCALE}, ["has length=17", "--dim length=1..17"]),
        ({"ids": IDS[:, :0], "scale": SCALE}, ["has length=0 along axis 1, outside 1..16"]),
        ({"ids": "text", "scale": object()}, ["'ids'", "'scale'"]),
        ({"ids": IDS32[0], "scale": SCALE16[:, :2]}, ["int32", "rank 1", "float16", "size 2"]),
    ],
)  # fmt: skip
def test_every_misfit_is_named_at_once(inputs: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        checked(inputs, SPECS, DIMS)
    text = str(caught.value)
    assert all(fact in text for fact in facts), text
    assert len(caught.value.problems) >= len(facts) - 1


def test_plain_numbers_take_the_dtype_where_nothing_is_lost() -> None:
    arrays = checked({"ids": [[1, 2], [3, 4]], "scale": [[1, 2.5, 3]] * 2}, SPECS, DIMS)
    assert arrays["ids"].dtype == np.int64 and arrays["scale"].dtype == np.float32
    with pytest.raises(InputError, match="not int64"):
        checked({"ids": [[1.5]], "scale": [[1, 2, 3]]}, SPECS, DIMS)


def test_result_equals_numpy_for_every_kind_of_tensor(artifact: Artifact) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    wide = np.zeros((3, 64), np.float32)
    wide[:, ::2] = x
    expected = run_mlp(mlp(), x)["y"]
    with open_runner(artifact, threads=1) as runner:
        for held in (
            x,
            wide[:, ::2],
            np.asfortranarray(x),
            x.astype(">f4"),
            torch.from_numpy(x).requires_grad_(),
            x.tolist(),
            Dlpack(x),
        ):
            np.testing.assert_allclose(runner.run({"x": held})["y"], expected, rtol=1e-5, atol=1e-5)


class Dlpack:
    """An array of a library that only speaks dlpack."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_torch_tensors_run_where_they_lie(artifact: Artifact) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 32)
    with open_runner(artifact, threads=1) as runner:
        out = runner.run_device({"x": x.t().contiguous().t()})
        assert isinstance(out["y"], torch.Tensor)
        np.testing.assert_allclose(out["y"].numpy(), run_mlp(mlp(), x.numpy())["y"], rtol=1e-5, atol=1e-5)
        with pytest.raises(InputError, match="float64, not float32"):
            runner.run_device({"x": x.double()})


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.bool_, np.uint8]
)
def test_every_dtype_goes_in_and_out(dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).integers(0, 2, (2, 3)).astype(dtype)
    with identity(ir.tensor(x).dtype) as runner:
        y = runner.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(x.astype(np.float32), y.astype(np.float32))


def test_torch_bfloat16_goes_in() -> None:
    torch = pytest.importorskip("torch")
    with identity(ir.DataType.BFLOAT16) as runner:
        y = runner.run({"x": torch.tensor([[1.5, -2]], dtype=torch.bfloat16)})["y"]
    assert y.dtype == ml_dtypes.bfloat16 and y.tolist() == [[1.5, -2]]


def test_text_goes_in_and_out() -> None:
    with identity(ir.DataType.STRING) as runner:
        assert runner.run({"x": np.array([["a", "ü"]])})["y"].tolist() == [["a", "ü"]]
        assert runner.run({"x": [["a"]]})["y"].tolist() == [["a"]]


def test_taps_show_inner_values_and_unknown_ones_are_left_out(artifact: Artifact) -> None:
    x = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    with open_runner(artifact, taps=["h0", "y", "h0", "gone"]) as runner:
        values = runner.run({"x": x})
    assert sorted(values) == ["h0", "y"]
    np.testing.assert_allclose(values["h0"], run_mlp(mlp(), x)["h0"], rtol=1e-5, atol=1e-5)


def test_failing_kernel_is_named() -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="encoder/reshape")]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [7])
    runner = session(nodes, "FLOAT", ("n", 2), initializers=[shape])
    with runner, pytest.raises(CompileError) as caught:
        runner.run({"x": np.ones((2, 2), np.float32)})
    assert "node 'encoder/reshape' (Reshape)" in str(caught.value)
    assert ".cc:" not in str(caught.value)


def test_operator_without_kernel_is_unsupported_and_named() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="shift")]
    with pytest.raises(UnsupportedError, match=r"node 'shift'.*Relu"):
        session(nodes, "INT64", ("n", 2))


def test_malformed_model_is_a_compile_error() -> None:
    signature = Entry((), ())
    with pytest.raises(CompileError):
        OnnxRuntimeRunner(OnnxRuntimeModel(b"not protobuf", signature))


def test_missing_provider_names_the_pip_line(artifact: Artifact) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    model = model_of(artifact)
    assert isinstance(model, OnnxRuntimeModel)
    with pytest.raises(ToolError, match=r"pip install 'onnxruntime-gpu"):
        OnnxRuntimeRunner(
            OnnxRuntimeModel(model.data, model.signature, target=Target("cuda"), weights=model.weights)
        )


def test_closed_runner_says_so(artifact: Artifact) -> None:
    runner = open_runner(artifact, threads=1)
    runner.close()
    with pytest.raises(CompileError, match="was closed"):
        runner.run({"x": np.ones((1, 32), np.float32)})


def test_unknown_variant_and_entry_name_what_there_is(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="source, cpu-ort"):
        open_runner(artifact, "cuda-ort")
    with pytest.raises(ArtifactError, match="it has main"):
        open_runner(artifact, entry="decode")


def test_backend_of_another_version_is_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    variants = {"new": replace(artifact.manifest.variants["source"], backend="wasm")}
    monkeypatch.setattr(artifact, "manifest", replace(artifact.manifest, variants=variants, default="new"))
    with pytest.raises(ArtifactError, match=r"'wasm'.*upgrade"):
        open_runner(artifact)


def test_folder_replaced_while_open_keeps_working(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_folder(folder)
    x = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    with Artifact(folder) as old, open_runner(old, threads=1) as before:
        write_folder(folder, mlp(seed=5))
        with (
            open_runner(old, "source", threads=1) as after,
            Artifact(folder) as new,
            open_runner(new) as fresh,
        ):
            expected = run_mlp(mlp(), x)["y"]
            np.testing.assert_allclose(before.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(after.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
            assert not np.allclose(fresh.run({"x": x})["y"], expected)


def test_threads_may_share_a_runner(artifact: Artifact) -> None:
    made = mlp()
    wrong: list[int] = []
    with open_runner(artifact, threads=1) as runner:

        def work(seed: int) -> None:
            x = np.random.default_rng(seed).standard_normal((seed + 1, 32)).astype(np.float32)
            expected = run_mlp(made, x)["y"]
            wrong.extend(
                seed for _ in range(30) if not np.allclose(runner.run({"x": x})["y"], expected, atol=1e-4)
            )

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_message_has_one_line_and_no_path_of_onnxruntime(artifact: Artifact) -> None:
    model = model_of(artifact)
    assert isinstance(model, OnnxRuntimeModel)
    broken = OnnxRuntimeModel(model.data, model.signature, weights=artifact.folder / "variants/none.bin")
    with pytest.raises(CompileError) as caught:
        OnnxRuntimeRunner(broken)
    assert not re.search(r"\n|onnxruntime_src|\.cc", str(caught.value))


def identity(dtype: ir.DataType) -> OnnxRuntimeRunner:
    return session([helper.make_node("Identity", ["x"], ["y"])], dtype.name, ("n", "m"))


def session(
    nodes: list[Any], dtype: str, shape: tuple[Any, ...], initializers: list[Any] | None = None
) -> OnnxRuntimeRunner:
    kind = TensorProto.DataType.Value(dtype)
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    code = ir.DataType[dtype]
    signature = Entry((TensorSpec("x", code, shape),), (TensorSpec("y", code, None),))
    return OnnxRuntimeRunner(OnnxRuntimeModel(model.SerializeToString(), signature), threads=1)
