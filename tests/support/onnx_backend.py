"""The ONNX project's backend test suite as plain cases: a model, inputs, expected outputs, tolerances."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One case. ``load`` gives the model and its data sets, each a pair of positional inputs and outputs."""

    name: str
    rtol: float
    atol: float
    load: Callable[[], tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]]


@cache
def cases() -> tuple[Case, ...]:
    """All cases that need no download, in the order of their names."""
    from onnx.backend.test.loader import load_model_tests

    found = {}
    for kind in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the suite computes its data on import, with infinities
            tests = load_model_tests(kind=kind)
        for test in tests:
            if test.model_dir is not None:
                load = _from_folder(Path(test.model_dir))
            else:
                load = _from_memory(test.model, test.data_sets)
            found[f"{kind}/{test.name}"] = Case(f"{kind}/{test.name}", test.rtol, test.atol, load)
    return tuple(found[name] for name in sorted(found))


def _from_memory(model: Any, data_sets: Any) -> Callable[[], Any]:
    def array(item: Any) -> Any:
        return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item

    return lambda: (model, [([array(i) for i in ins], [array(o) for o in outs]) for ins, outs in data_sets])


def _from_folder(folder: Path) -> Callable[[], Any]:
    def load() -> Any:
        model = onnx.load(folder / "model.onnx")
        defaults = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in defaults]
        data = []
        for part in sorted(folder.glob("test_data_set_*")):
            given = [_read(part / f"input_{i}.pb", value.type) for i, value in enumerate(inputs)]
            wanted = [
                _read(part / f"output_{i}.pb", value.type) for i, value in enumerate(model.graph.output)
            ]
            data.append((given, wanted))
        return model, data

    return load


def _read(file: Path, kind: onnx.TypeProto) -> Any:
    content = file.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def check(case: Case, wanted: Sequence[Any], got: Sequence[Any]) -> None:
    """Raise AssertionError if the outputs differ in count, dtype, shape, or beyond the case's tolerances."""
    from onnx.backend.test.runner import Runner

    with np.errstate(all="ignore"):
        Runner.assert_similar_outputs(wanted, got, case.rtol, case.atol)
