"""Every golden model, imported, computes what its framework computes, layer by layer, at several sizes."""

from __future__ import annotations

import pytest
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.ir.verify import problems
from miaotui.frontends.load import load
from support.models import MODELS, Golden
from support.sessions import relative_error, run_program

TOLERANCE = 1e-4
"""Error over the greatest magnitude of the reference, float32."""

CASES = [pytest.param(g, id=g.name, marks=[pytest.mark.slow] if g.slow else []) for g in MODELS.values()]


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest):
    model: Golden = request.param
    return model, load(model.build(), inputs=model.inputs(batch=1))


def test_equals_its_framework_at_every_size(golden):
    model, imported = golden
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


def test_default_dimensions_are_dynamic(golden):
    model, imported = golden
    assert set(imported.program.dims) == set(model.sizes)
    assert "note" not in imported.program.source


def test_program_is_sound_and_knows_its_sources(golden):
    _, imported = golden
    program = imported.program
    assert problems(program.main) == []
    assert len(program.layers) >= 4
    assert all(sources(node) for node in program.main.graph)
    assert any(source.layer for node in program.main.graph for source in sources(node))
    assert set(imported.examples or {}) == {spec.name for spec in program.inputs()}


def test_weights_are_the_frameworks_own(golden):
    model, imported = golden
    if model.framework != "torch":
        pytest.skip("Keras cells are reordered")
    module = imported.reference._module
    own = {t.data_ptr() for t in [*module.parameters(), *module.buffers()]}
    large = [
        v.const_value
        for v in imported.program.main.graph.initializers.values()
        if v.const_value.nbytes > 8192
    ]
    assert large
    assert all(tensor.raw.data_ptr() in own for tensor in large)
