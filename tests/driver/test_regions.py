"""Programs shared out between ONNX Runtime and TVM: who gets what, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.tvm.backend import TvmBackend
from miaotui.compiler.draft import Draft
from miaotui.compiler.errors import CompileError, OptionError, UnsupportedError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.driver import candidates
from miaotui.driver.context import context_of
from miaotui.driver.estimate import estimate
from miaotui.driver.lower import Recipe
from miaotui.driver.regions import sparse_to_tvm
from miaotui.driver.workbench import Workbench
from miaotui.passes.pipeline import pipeline
from miaotui.runtime import tvm_inputs
from miaotui.runtime.chain import ChainRunner
from miaotui.runtime.tensors import address_of
from support.numerics import assert_close, run_ort

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 64)).astype(np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))


def sparse(rows: int, columns: int, density: float = 0.15) -> Any:
    keep = RNG.random((rows, columns // 16)) < density
    return (RNG.standard_normal((rows, columns)) * np.repeat(keep, 16, 1) / np.sqrt(rows)).astype(np.float32)


def model(density: float = 0.15, width: int = 96) -> ir.Model:
    """Two products, sparse if ``density`` is low, each with bias; a Softmax between them."""
    b = Builder()
    x = b.input("x", ("batch", 64))
    h = b.op("MatMul", x, b.weight("w1", sparse(64, width, density)), name="first")
    h = b.op("Relu", b.op("Add", h, b.weight("b1", np.ones(width)), name="bias"), name="relu")
    h = b.op("Softmax", h, axis=-1, name="soft")
    h = b.op("MatMul", h, b.weight("w2", sparse(width, 64, density)), name="second")
    b.output(b.op("Add", h, x, name="residual"), "y")
    return b.model()


def owned(program: Program) -> dict[str, str]:
    owner = sparse_to_tvm(program, Target(), TvmBackend())
    return {str(node.name): owner(node) for node in program.main.graph}


def test_sparse_products_and_what_follows_them_are_tvms() -> None:
    assert owned(Program({"main": model()})) == {
        "first": "tvm", "bias": "tvm", "relu": "tvm", "soft": "ort", "second": "tvm", "residual": "tvm",
    }  # fmt: skip
    assert set(owned(Program({"main": model(density=1.0)})).values()) == {"ort"}


def test_the_estimate_tells_sparse_weights_from_dense_ones() -> None:
    wide = X.repeat(20, 0)
    sparse_one, dense = (estimate(Program({"main": model(d, 4096)}), {"x": wide}, 1) for d in (0.15, 1.0))
    assert sparse_one is not None and sparse_one.is_plausible and sparse_one.sparse > 0.5
    assert dense is not None and not dense.is_plausible and dense.sparse == 0
    assert "dense MatMul" in str(dense)


@pytest.mark.parametrize(
    ("width", "rows", "worth"), [(4096, 1, True), (4096, 8, True), (4096, 16, False), (96, 1, False)]
)
def test_dense_products_are_worth_trying_if_they_are_large_and_rows_few(
    width: int, rows: int, worth: bool
) -> None:
    found = estimate(Program({"main": model(1.0, width)}), {"x": X[:1].repeat(rows, 0)}, 1)
    assert found is not None and found.is_plausible == worth


def test_options_that_regions_can_not_follow_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--backend.*CPUs"):
        CompileOptions(backend="ort+tvm", target=Target("cuda"))
    with pytest.raises(OptionError, match="fp16"):
        CompileOptions(backend="ort+tvm", precision="fp16")
    with pytest.raises(OptionError, match="chooses its kernels when it runs"):
        CompileOptions(backend="ort+tvm", target=Target("cpu", "x86-64-v3"))


def test_a_candidate_that_fails_falls_out_with_a_note(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: TvmBackend, *arguments: Any) -> Any:
        raise CompileError("TVM", "its pass FuseOps failed, see reproducer.py", "report it")

    monkeypatch.setattr(candidates, "_without_tvm", lambda *_: {"tvm": "", "ort+tvm": "too dense for it"})
    monkeypatch.setattr(TvmBackend, "build", failing)
    with miaotui.compile(classifier, output=tmp_path / "m", timing=0.1, threads=1) as executable:
        assert executable.manifest.default == "cpu-ort"
        choice = executable.report["choice"]
        assert any("no tvm code: TVM: its pass FuseOps failed" in note for note in executable.report["notes"])
    told = {row["backend"]: (row["state"], row["why"]) for row in choice["candidates"]}
    assert told["ort"] == ("kept", "the only one that works")
    assert told["tvm"][0] == "failed" and "reproducer.py" in told["tvm"][1]
    assert told["ort+tvm"] == ("left out", "too dense for it") and told["native"][0] == "left out"
    assert choice["kept"] == "ort" and not choice["cached"]
    assert "no tvm code" in (tmp_path / "m" / "report.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tvm_ffi")
    place = tmp_path_factory.mktemp("regions")
    ir.save(model(), place / "model.onnx")
    miaotui.compile(place / "model.onnx", output=place / "m", backend="ort+tvm", timing=0, threads=1).close()
    return place / "m"


def test_a_program_in_regions_is_proved_opens_and_runs(folder: Path) -> None:
    wanted = run_ort(ir.load(folder.parent / "model.onnx"), {"x": X})
    with miaotui.open(folder) as executable:
        record = executable.manifest.variants["cpu-ort+tvm"]
        assert [part.backend for part in record.segments["main"]] == ["tvm", "ort", "tvm"]
        assert executable.manifest.certificate is not None and executable.manifest.certificate.ok
        assert_close(executable.run({"x": X}), wanted)
        assert executable.verify().ok


def test_onnxruntime_and_tvm_hand_over_without_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.repeat(20, 0)  # small arrays are copied
    with miaotui.open(folder) as executable:
        runner = executable.runner(threads=1)
        assert isinstance(runner, ChainRunner)
        addresses: list[int] = []
        seen: list[int] = []
        tensor_of = tvm_inputs.tensor_of

        def spied_tensor(array: Any) -> Any:
            found = tensor_of(array)
            addresses.append(address_of(np.from_dlpack(found)))
            return found

        def spied(run: Any) -> Any:
            def spy(arrays: Any) -> Any:
                seen.extend(map(address_of, arrays.values()))
                found = run(arrays)
                seen.extend(map(address_of, found.values()))
                return found

            return spy

        monkeypatch.setattr(tvm_inputs, "tensor_of", spied_tensor)
        for step in runner._steps:
            monkeypatch.setattr(step.runner, "run_arrays", spied(step.runner.run_arrays))
        runner.run_arrays({"x": x})
    (first_in, first_out, ort_in, ort_out), last_in = seen[:4], seen[4:-1]
    assert first_in == address_of(x) and ort_in == first_out and ort_out in last_in
    assert ort_out in addresses  # what TVM's kernel reads is what ONNX Runtime wrote


def test_a_variant_in_regions_moves_to_another_draft(tmp_path: Path) -> None:
    pytest.importorskip("tvm_ffi")
    program = Program({"main": model()})
    options = CompileOptions(backend="ort+tvm")
    lowered = Recipe(program, pipeline(options), context_of(options)).lower()
    wanted = run_ort(program.main, {"x": X})
    with Draft(tmp_path / "one") as one, Draft(tmp_path / "two") as two:
        one.weights.add(ir.tensor(np.ones(3000, np.float32)))  # a dropped candidate's
        built = Workbench(one, "ort+tvm", Target()).optimized(lowered, "first")
        again = Workbench(two, "ort+tvm", Target()).again(built, lowered, "second")
        assert two.weights.size < one.weights.size
        assert {path.split("/")[1] for path in again.variant.files} == {"second"}
        with again.open(1) as runner:
            assert_close(runner.run({"x": X}), wanted)


def test_nothing_to_share_out_is_said(tmp_path: Path) -> None:
    ir.save(model(density=1.0), tmp_path / "dense.onnx")
    with pytest.raises(UnsupportedError, match="all of it is ort's"):
        miaotui.compile(tmp_path / "dense.onnx", output=tmp_path / "m", backend="ort+tvm", timing=0)
