"""What holds for a golden model as it is imported, and as it is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.ir.verify import problems
from miaotui.frontends.base import Import
from miaotui.runtime.executable import Executable
from support.models import Golden
from support.sessions import relative_error, run_program

TOLERANCE = 1e-4
"""Error over the greatest magnitude of the reference, float32."""


def equals_at_every_size(model: Golden, imported: Import) -> None:
    """The program computes what its framework computes, layer by layer, at three choices of sizes."""
    single = dict.fromkeys(model.sizes, 1)
    cases = [model.inputs(1, **model.sizes), model.inputs(2, **model.other), model.inputs(3, **single)]
    for case, (outputs, layers) in zip(cases, run_program(imported.program, *cases), strict=True):
        wanted = imported.reference.run(case)
        assert outputs.keys() == wanted.keys()
        for name, value in wanted.items():
            assert abs(value).max() > 1e-3, "a reference near zero would hide errors"
            assert relative_error(outputs[name], value) < TOLERANCE, name
        known = imported.reference.layers(case)
        assert known.keys() == layers.keys()
        for path, value in known.items():
            assert relative_error(layers[path], value) < TOLERANCE, path


def dimensions_are_dynamic(model: Golden, imported: Import) -> None:
    assert set(imported.program.dims) == set(model.sizes)
    assert "note" not in imported.program.source


def is_sound_and_knows_its_sources(imported: Import) -> None:
    program = imported.program
    assert problems(program.main) == []
    assert len(program.layers) >= 4
    assert all(sources(node) for node in program.main.graph)
    assert any(source.layer for node in program.main.graph for source in sources(node))
    assert set(imported.examples or {}) == {spec.name for spec in program.inputs()}


def holds_the_framework_s_own_weights(imported: Import) -> None:
    module: Any = imported.reference._module  # type: ignore[attr-defined]
    own = {t.data_ptr() for t in [*module.parameters(), *module.buffers()]}
    large: list[Any] = [
        v.const_value
        for v in imported.program.main.graph.initializers.values()
        if v.const_value is not None and v.const_value.nbytes > 8192
    ]
    assert large
    assert all(tensor.raw.data_ptr() in own for tensor in large)


def is_called_like_its_source_and_equals_it(golden: Golden, model: Any, executable: Executable) -> None:
    """``model``: the source, as ``golden`` builds it."""
    with torch.no_grad():
        assert executable.verify(reference=model).ok
        for sizes in (golden.sizes, golden.other, dict.fromkeys(golden.sizes, 1)):
            case = golden.inputs(7, **sizes)
            wanted = _leaves(_called(golden, model, case))
            outputs = executable.run(case)
            assert outputs.keys() == wanted.keys()
            for name, value in wanted.items():
                assert relative_error(outputs[name], value) < TOLERANCE, name
            again = _leaves(_called(golden, executable, case))
            assert all(np.array_equal(again[name], outputs[name]) for name in outputs)


def _called(golden: Golden, model: Any, case: dict[str, np.ndarray]) -> Any:
    """The framework's own call, on its own tensors; works for a module and for an executable alike."""
    tensors = {name: torch.from_numpy(value) for name, value in case.items()}
    if golden.framework == "torch":
        return model(**tensors)
    return model(next(iter(tensors.values())))


def _leaves(result: Any) -> dict[str, np.ndarray]:
    named = dict(result) if hasattr(result, "items") else {"output": result}
    return {
        name: np.asarray(value.detach() if hasattr(value, "detach") else value)
        for name, value in named.items()
    }
