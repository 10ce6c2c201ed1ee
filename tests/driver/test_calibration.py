"""Calibration data: files checked as a whole, text cut into windows, moments found where weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import InputError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.driver.calibration import measured_moments
from miaotui.driver.samples import TOKENIZER, samples_of
from miaotui.frontends.load import load
from miaotui.passes.base import NoMatch, PassContext
from miaotui.passes.pipeline import pipeline
from miaotui.passes.weight_uses import WeightUses, weight_uses
from support.language_models import DECODERS, VOCABULARY, build, imported
from support.small_tokenizers import bytes_alone

F = np.float32


@pytest.fixture
def program(classifier: Path) -> Program:
    return load(classifier).program


def refused(program: Program, path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        samples_of(program, str(path))
    return [str(problem) for problem in caught.value.problems]


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.mark.parametrize(
    ("shape", "count", "one"),
    [((20, 32), 4, (5, 32)), ((20, 4, 32), 20, (4, 32)), ((8, 32), 1, (8, 32)), ((200, 1, 32), 64, (1, 32))],
)
def test_samples_lie_along_the_batch_or_one_more_axis(
    program: Program, tmp_path: Path, shape: tuple[int, ...], count: int, one: tuple[int, ...]
) -> None:
    data = np.arange(np.prod(shape), dtype=F).reshape(shape)
    found = samples_of(program, str(saved(tmp_path, x=data))).inputs
    assert len(found) == count and {sample["x"].shape for sample in found} == {one}
    np.testing.assert_array_equal(found[0]["x"], data.reshape(-1, *one)[0])


def test_every_problem_of_a_file_is_told_at_once(program: Program, tmp_path: Path) -> None:
    problems = refused(program, saved(tmp_path, x=np.array([[1.0, np.nan]]), other=np.ones(3, F)))
    assert any("1 of 2 values are NaN" in p for p in problems)
    assert any("'other': does not exist" in p for p in problems)
    assert any("float64, not float32" in p for p in problems)


def test_wrong_shapes_no_samples_and_unreadable_files_are_refused(program: Program, tmp_path: Path) -> None:
    assert "size 31 along axis 1" in refused(program, saved(tmp_path, x=np.ones((4, 31), F)))[0]
    assert "holds no sample" in refused(program, saved(tmp_path, x=np.ones((0, 32), F)))[0]
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    assert "can't be read" in refused(program, tmp_path / "bad.npz")[0]
    assert "is no file" in refused(program, tmp_path / "absent.npz")[0]
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None]))
    assert "can't be read" in refused(program, tmp_path / "objects.npz")[0]


def test_arrays_with_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    b = Builder()
    x, y = b.input("x", (1, 4)), b.input("y", (1, 4))
    b.output(b.op("Add", x, y), "sum")
    ir.save(b.model(), tmp_path / "sum.onnx")
    made = load(tmp_path / "sum.onnx").program
    problems = refused(made, saved(tmp_path, x=np.ones((3, 4), F), y=np.ones((5, 4), F)))
    assert "different numbers of samples: x 3, y 5" in problems[0]


def test_indices_outside_the_table_are_refused(tmp_path: Path) -> None:
    b = Builder()
    ids = b.input("ids", ("batch", 3), ir.DataType.INT64)
    b.output(b.op("Gather", b.weight("table", np.ones((10, 4))), ids), "rows")
    ir.save(b.model(), tmp_path / "table.onnx")
    made = load(tmp_path / "table.onnx").program
    assert "has 10 rows" in refused(made, saved(tmp_path, ids=np.full((2, 3), 10)))[0]


@pytest.fixture(scope="module")
def llama() -> Program:
    program = imported(build(*DECODERS["llama"]))
    program.assets[TOKENIZER] = bytes_alone()
    return program


def test_text_is_cut_into_windows_that_cover_it(llama: Program, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 80, "utf-8")
    found = samples_of(llama, str(tmp_path / "text.txt")).inputs
    assert len(found) > 2 and all(sample["input_ids"].shape == (1, 128) for sample in found)
    whole = samples_of(llama, None).inputs
    assert all(sample["input_ids"].max() < VOCABULARY for sample in whole)


def test_texts_that_do_not_do_are_refused(llama: Program, program: Program, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short", "utf-8")
    assert "less than one window of 128" in refused(llama, text)[0]
    assert "without a tokenizer" in refused(program, text)[0]
    text.write_bytes(b"abc \xff")
    assert "no UTF-8 text (byte 4)" in refused(llama, text)[0]


def test_moments_are_the_mean_of_outer_products(program: Program) -> None:
    random = np.random.default_rng(0)
    inputs = [{"x": random.standard_normal((rows, 32)).astype(F)} for rows in (3, 9)]
    moment = measured_moments(program, inputs)["x"]
    rows = np.concatenate([arrays["x"] for arrays in inputs]).astype(np.float64)
    assert moment.rows == 12
    np.testing.assert_allclose(moment.matrix, rows.T @ rows / 12, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_every_linear_layer_finds_its_moment_when_weights_are_approximated(family: str) -> None:
    source = imported(build(*DECODERS[family]))
    moments = measured_moments(source, [{"input_ids": np.arange(24)[None]}])
    program = source.clone()
    for step in pipeline(CompileOptions(precision="int4", backend="ort")):
        if step.name == "quantize-weights":
            break
        step.run(program, PassContext())
    uses = [found for value in program.main.graph.initializers.values() if (found := _uses(value))]
    read = {str(node.inputs[0].name) for found in uses for node in found.multiplied if node.inputs[0]}
    assert len(read) >= 9 and read <= moments.keys()


def _uses(value: ir.Value) -> WeightUses | None:
    try:
        return weight_uses(value)
    except NoMatch:
        return None
