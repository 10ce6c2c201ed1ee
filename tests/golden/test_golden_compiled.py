"""Every golden model, compiled for the CPU, equals its framework and is called as its framework is."""

from __future__ import annotations

from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from support.models import MODELS, Golden
from support.sessions import relative_error

TOLERANCE = 1e-4
"""Error over the greatest magnitude of the reference, float32."""

CASES = [pytest.param(g, id=g.name, marks=[pytest.mark.slow] if g.slow else []) for g in MODELS.values()]


def called(golden: Golden, model: Any, case: dict[str, np.ndarray]) -> Any:
    """The framework's own call, on its own tensors; works for a module and for an executable alike."""
    tensors = {name: torch.from_numpy(value) for name, value in case.items()}
    if golden.framework == "torch":
        return model(**tensors)
    return model(next(iter(tensors.values())))


def leaves(result: Any) -> dict[str, np.ndarray]:
    named = dict(result) if hasattr(result, "items") else {"output": result}
    return {
        name: np.asarray(value.detach() if hasattr(value, "detach") else value)
        for name, value in named.items()
    }


@pytest.mark.parametrize("golden", CASES)
def test_executable_is_called_like_its_source_and_equals_it(golden):
    model = golden.build()
    with (
        miaotui.compile(model, golden.inputs(batch=1), timing=0.0, threads=1, backend="ort") as executable,
        torch.no_grad(),
    ):
        assert executable.verify(reference=model).ok
        for sizes in (golden.sizes, golden.other, dict.fromkeys(golden.sizes, 1)):
            case = golden.inputs(7, **sizes)
            wanted = leaves(called(golden, model, case))
            outputs = executable.run(case)
            assert outputs.keys() == wanted.keys()
            for name, value in wanted.items():
                assert relative_error(outputs[name], value) < TOLERANCE, name
            again = leaves(called(golden, executable, case))
            assert all(np.array_equal(again[name], outputs[name]) for name in outputs)
