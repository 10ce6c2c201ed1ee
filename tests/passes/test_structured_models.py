"""Heads and channels removed from exported transformers: the pruned source's outputs and tokens, smaller."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.raising import RAISING
from miaotui.passes.sparsity import PruneChannels, PruneHeads
from support.language_models import BERT, DECODERS, TRANSLATORS, build, generated, imported
from support.native_stepping import example, native_stepper
from support.rewriting import assert_same, run_pass
from support.stepping import Stepper, assert_steps_equal_whole, lowered

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SPARSITY = "heads:0.5,channels:0.4"
PROMPTS = [[7, 42, 250, 3, 3, 99], [120, 8, 15]]
FAMILIES: dict[str, Any] = {**DECODERS, **TRANSLATORS, "bert": BERT}


@functools.cache
def source(family: str) -> tuple[Any, Program]:
    """The module, and its program as imported; leave both as they are."""
    model = build(*FAMILIES[family])
    return model, imported(model)


@functools.cache
def raised(family: str) -> Program:
    program = source(family)[1].clone()
    for step in (*CLEANUP, *RAISING, *CLEANUP):
        step.run(program, PassContext())
    return program


def weights(program: Program) -> dict[str, Any]:
    return {
        name: value.const_value.numpy()
        for name, value in program.main.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > 256
    }


def removed(before: Program, after: Program) -> dict[str, Any]:
    """By name of a weight [in, out] that lost rows: which stayed."""
    found, small = {}, weights(after)
    for name, array in weights(before).items():
        other = small.get(name)
        if other is not None and other.shape[1:] == array.shape[1:] and len(other) < len(array):
            found[name] = (array[:, None] == other[None]).all(-1).any(1)
            np.testing.assert_array_equal(array[found[name]], other)
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bloom", "t5-gated"])
def test_the_rest_is_as_if_they_were_zero(family: str) -> None:
    program, expected = raised(family).clone(), raised(family).clone()
    for step in (PruneHeads(share=0.5), PruneChannels(share=0.4)):
        result = run_pass(step, program)
        assert result.changed >= 2
        assert not result.declined, "every layer is cut"
    kept = removed(expected, program)
    assert len(kept) == sum(r.op_type == "Attention" for r in program.main.graph) + (
        4 if family == "t5-gated" else 2
    )
    for name, rows in kept.items():
        value = expected.main.graph.initializers[name]
        value.const_value = ir.tensor(weights(expected)[name] * rows[:, None].astype(np.float32), name=name)
    case = example(program, "main")
    assert_same(evaluate(expected.main, case), evaluate(program.main, case), 1e-5)
    assert sum(w.size for w in weights(program).values()) < 0.75 * sum(
        w.size for name, w in weights(expected).items() if "embed" not in name
    ) + sum(w.size for name, w in weights(expected).items() if "embed" in name)


def pruned_module(family: str, kept: dict[str, Any]) -> Any:
    """The source with zeros where rows of a stored weight [in, out] went."""
    model = build(*FAMILIES[family])
    model.load_state_dict(source(family)[0].state_dict())
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, rows in kept.items():
            gone = torch.from_numpy(np.flatnonzero(~rows))
            parameter = parameters[name.removesuffix(".T")]
            (parameter.T if name.endswith(".T") else parameter)[gone] = 0
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_writes_what_the_pruned_source_writes(family: str) -> None:
    program = lowered(source(family)[1], sparsity=SPARSITY)
    assert program.decoding is not None
    stepper = Stepper(program)
    heads = 2 if family == "gpt2" else 1
    assert all(stepper.shapes[tensor.input][1] == heads for tensor in program.decoding.state), "smaller cache"
    assert_steps_equal_whole(program)
    small = raised(family).clone()
    for step in (PruneHeads(share=0.5), PruneChannels(share=0.4)):
        step.run(small, PassContext())
    model = pruned_module(family, removed(raised(family), small))
    assert stepper.greedy(PROMPTS, 6) == generated(model, PROMPTS, 6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_native_code_and_few_bits_follow(precision: str, tmp_path: Path) -> None:
    program = lowered(source("llama")[1], sparsity=SPARSITY)
    native = lowered(source("llama")[1], sparsity=SPARSITY, backend="native", precision=precision)
    found = []
    with native_stepper(native, tmp_path) as stepper:
        for one in (Stepper(program), stepper):
            one.start(len(PROMPTS))
            found.append(one.step(PROMPTS)[0])
    error = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    assert error < {"fp32": 1e-5, "int8": 0.05}[precision]
    assert precision == "fp32" or error > 1e-4, "weights are rounded"
