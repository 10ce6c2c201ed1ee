"""The ONNX project's backend suite through our road: import, every pass, verifier, ONNX Runtime build.

Every case that plain ONNX Runtime passes must pass here. The others are in ``exceptions.txt`` with what plain
ONNX Runtime says of them; ``python tests/conformance/test_onnx_backend.py`` writes that table anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.errors import CompileError, InternalError
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import CompileOptions, Precision, Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.frontends.onnx import import_onnx
from miaotui.passes.base import PassContext
from miaotui.passes.observers import Verify, run_pipeline
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from support.onnx_backend import Case, cases, check

TABLE = Path(__file__).with_name("exceptions.txt")
CHUNKS = 40
TARGET = Target("cpu")
VERSIONS = f"onnx {onnx.__version__}, onnxruntime {ort.__version__}"


def exceptions() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if line and not line.startswith("#"))


def optimized(path: Path, options: CompileOptions) -> Program:
    """The program of the file after the pipeline of ``options``, verified after every pass."""
    program = import_onnx(path).program
    backend = OnnxRuntimeBackend()
    context = PassContext(options.target, supports=lambda node: backend.supports(node, options.target))
    run_pipeline(program, pipeline(options), context, [Verify()])
    return program


def run_optimized(
    model: onnx.ModelProto, data: Sequence[tuple[list[Any], list[Any]]], folder: Path
) -> list[list[Any]]:
    """Outputs of every data set, from the built executable."""
    source = folder / "model.onnx"
    source.write_bytes(model.SerializeToString())
    program = optimized(source, CompileOptions(target=TARGET))
    with WeightStore(folder / "weights.bin") as store:
        build = OnnxRuntimeBackend().build(program, TARGET, folder, store)
    built = OnnxRuntimeModel(
        (folder / build.entries["main"]).read_bytes(),
        Entry(program.inputs(), program.outputs()),
        settings=build.settings,
        weights=store.path,
    )
    results = []
    with OnnxRuntimeRunner(built, threads=1) as runner:
        for inputs, _ in data:
            feeds = {spec.name: array(value) for spec, value in zip(runner.inputs, inputs, strict=True)}
            outputs = runner.run(feeds)
            results.append([outputs[spec.name] for spec in program.outputs()])
    return results


def run_plain(model: onnx.ModelProto, data: Sequence[tuple[list[Any], list[Any]]]) -> list[list[Any]]:
    """Outputs of every data set, from ONNX Runtime on the model as it is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [session.run(None, dict(zip(names, map(array, inputs), strict=False))) for inputs, _ in data]


def array(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.generic) else value


def plain_verdict(case: Case) -> str:
    """Empty if plain ONNX Runtime passes the case, else what it says."""
    model, data = case.load()
    try:
        results = run_plain(model, data)
    except Exception as error:
        return "refused: " + one_line(error)
    try:
        for (_, wanted), got in zip(data, results, strict=True):
            check(case, wanted, got)
    except (AssertionError, TypeError) as error:
        return "wrong: " + one_line(error)
    return ""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_plain_onnxruntime_passes_passes_here(chunk: int, tmp_path: Path) -> None:
    excepted = exceptions()
    failures = []
    for case in cases()[chunk::CHUNKS]:
        model, data = case.load()
        try:
            results = run_optimized(model, data, tmp_path)
            for (_, wanted), got in zip(data, results, strict=True):
                check(case, wanted, got)
        except Exception as error:
            # what plain ONNX Runtime refuses may be refused here, but never as an error of ours
            if case.name not in excepted or not isinstance(error, (CompileError, AssertionError, TypeError)):
                failures.append(f"{case.name}: {type(error).__name__}: {one_line(error)}")
    assert not failures, f"{len(failures)} cases fail:\n" + "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "first"), [("fp32", 0), ("fp16", 1)])
def test_what_is_made_for_cuda_is_well_formed(precision: Precision, first: int, tmp_path: Path) -> None:
    """Every third case in one precision, every third in the other: most differ in attributes alone."""
    options = CompileOptions(target=Target("cuda"), precision=precision)
    failures = []
    for case in cases()[first::3]:
        source = tmp_path / "model.onnx"
        source.write_bytes(case.load()[0].SerializeToString())
        try:
            optimized(source, options)
        except InternalError as error:
            failures.append(f"{case.name}: {one_line(error)}")
    assert not failures, f"{len(failures)} cases fail:\n" + "\n".join(failures)


def test_the_suite_is_whole() -> None:
    assert len(cases()) - len(exceptions()) >= 1625


def test_the_table_of_exceptions_is_what_plain_onnxruntime_says() -> None:
    if VERSIONS not in TABLE.read_text(encoding="utf-8"):
        pytest.skip(f"the table was not made with {VERSIONS}")
    listed = set(exceptions())
    failing = {case.name for case in cases() if plain_verdict(case)}
    assert listed - failing == set(), "listed, but plain ONNX Runtime passes them"
    assert failing - listed == set(), "plain ONNX Runtime fails them, but they are not listed"


if __name__ == "__main__":
    verdicts = {case.name: verdict for case in cases() if (verdict := plain_verdict(case))}
    head = f"# {len(verdicts)} of {len(cases())} cases that plain ONNX Runtime does not pass ({VERSIONS})"
    body = "\n".join(f"{name}\t{verdict}" for name, verdict in verdicts.items())
    TABLE.write_text(f"{head}\n{body}\n", encoding="utf-8")
