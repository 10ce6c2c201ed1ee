"""Encoders as native code equal their framework, at several sizes and with padding."""

from __future__ import annotations

from pathlib import Path

import pytest
from miaotui.frontends.load import load
from support.models import MODELS
from support.native_programs import build, opened
from support.quick_c import plain
from support.rewriting import operators
from support.sessions import relative_error
from support.stepping import lowered

TOLERANCE = 1e-4
"""Error over the greatest magnitude of the reference, float32."""


@pytest.mark.parametrize("name", ["bert", "keras_transformer", "minilm", "vit"])
def test_native_code_equals_the_framework(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    imported = load(model.build(), inputs=model.inputs(batch=1))
    program = lowered(imported.program, backend="native")
    assert {"MatMul", "Gemm", "Attention"}.isdisjoint(operators(program))
    build(program, tmp_path, plain())
    single = dict.fromkeys(model.sizes, 1)
    for threads in (1, 2):
        with opened(program, tmp_path, threads=threads) as runner:
            for sizes in (model.sizes, model.other, single):
                case = model.inputs(7, **sizes)
                outputs, wanted = runner.run(case), imported.reference.run(case)
                assert outputs.keys() == wanted.keys()
                for output, value in wanted.items():
                    assert relative_error(outputs[output], value) < TOLERANCE, (output, sizes)
