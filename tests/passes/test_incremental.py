"""Deriving a cached decoder: what is proved and cached, and what is declined and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from miaotui.compiler.ir.builder import BOOL, FLOAT, INT32, INT64, Builder
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.incremental import DeriveCache
from support.rewriting import reasons, run_pass
from support.stepping import Stepper, assert_steps_equal_whole, lowered, whole_logits

V, H, HEADS, SIZE, CONTEXT = 40, 32, 4, 8, 64
Mask = Callable[["Tiny", ir.Value, ir.Value, ir.Value], ir.Value]
"""(builder, key positions [t], query positions [t, 1], sizes int64[2]) → mask."""


class Tiny(Builder):
    """A Builder with named random weights and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def w(self, name: str, *shape: int) -> ir.Value:
        return self.weight(name, self.random.standard_normal(shape) / np.sqrt(shape[0]))

    def n(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        return self.weight(f"n{len(self.graph.initializers)}", np.asarray(value, dtype))


def causal(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    return b.op("LessOrEqual", keys, queries)


def window(width: int) -> Mask:
    def mask(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
        near = b.op("Greater", keys, b.op("Sub", queries, b.n(width)))
        return b.op("And", b.op("LessOrEqual", keys, queries), near)

    return mask


def additive(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    return b.op("Where", b.op("Greater", keys, queries), b.n(-3.4e38, np.float32), b.n(0, np.float32))


def triangle(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    """As TorchScript exports of masks: a constant triangle, cut to the length."""
    table = b.weight("triangle", np.tri(CONTEXT, dtype=np.bool_)[None, None])
    length = b.op("Slice", sizes, b.n([1]), b.n([2]))
    rows = b.op("Slice", table, b.n([0]), length, b.n([2]))
    return b.op("Slice", rows, b.n([0]), length, b.n([3]))


def trilu(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    length = b.op("Slice", sizes, b.n([1]), b.n([2]))
    full = b.op("Expand", b.n(-1e30, np.float32), b.op("Concat", length, length, axis=0))
    return b.op("Trilu", full, b.n(1), upper=1)


def alibi(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    slopes = b.weight("slopes", (0.5 ** np.arange(1, HEADS + 1))[:, None, None])
    return b.op(
        "Add", b.op("Mul", slopes, b.op("Cast", keys, to=int(FLOAT))), additive(b, keys, queries, sizes)
    )


def buckets(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    """Relative positions up to 5, a learned bias for each and head."""
    near = b.op("Min", b.op("Max", b.op("Sub", queries, keys), b.n(0)), b.n(5))
    bias = b.op("Transpose", b.op("Gather", b.w("relative", 6, HEADS), near), perm=[2, 0, 1])
    return b.op("Add", b.op("Unsqueeze", bias, b.n([0])), additive(b, keys, queries, sizes))


def chunked(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    same = b.op("Equal", b.op("Div", keys, b.n(6)), b.op("Div", queries, b.n(6)))
    return b.op("And", same, causal(b, keys, queries, sizes))


def prefix(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    return b.op("Or", b.op("Less", keys, b.n(4)), causal(b, keys, queries, sizes))


def far(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
    """Causal, but a hole far behind what small sizes show."""
    hole = b.op("Equal", b.op("Sub", queries, keys), b.n(50))
    return b.op("And", b.op("Not", hole), causal(b, keys, queries, sizes))


def batched(mask: Mask) -> Mask:
    """The mask expanded over the batch, as exporters do."""

    def made(b: Tiny, keys: ir.Value, queries: ir.Value, sizes: ir.Value) -> ir.Value:
        batch, length = b.op("Slice", sizes, b.n([0]), b.n([1])), b.op("Slice", sizes, b.n([1]), b.n([2]))
        target = b.op("Concat", batch, b.n([1]), length, length, axis=0)
        return b.op("Expand", mask(b, keys, queries, sizes), target)

    return made


MASKS: dict[str, Mask] = {
    "causal": causal, "window": window(4), "additive": additive, "triangle": triangle, "trilu": trilu,
    "alibi": alibi, "buckets": buckets, "chunked": chunked, "batched": batched(causal), "far": far,
    "batched alibi": batched(alibi),
}  # fmt: skip
RECOGNISED = {"causal": 0, "window": 4, "additive": 0, "triangle": 0, "trilu": 0, "batched": 0}


@dataclass(frozen=True)
class Net:
    """One decoder: ``hook(builder, x)`` changes the hidden states before the first layer's attention."""

    mask: Mask | None = causal
    is_causal: bool = False
    positions: str = "learned"
    flat: bool = False
    merged: bool = False
    layers: int = 2
    softcap: float = 0.0
    ids: ir.DataType = INT64
    extra: tuple[str, ...] = ()
    length: int | str = "sequence"
    batch: int | str = "batch"
    outputs: int = V
    name: str = "logits"
    hook: Callable[[Tiny, ir.Value], ir.Value] = field(default=lambda b, x: x)

    def program(self) -> Program:
        b = Tiny()
        ids = b.input("tokens", (self.batch, self.length), self.ids)
        given = {name: b.input(name, (self.batch, self.length), INT64) for name in self.extra}
        sizes = b.op("Shape", ids)
        length = b.op("Gather", sizes, b.n(1))
        steps = b.op("Range", b.n(0), length, b.n(1))
        x = b.op("Gather", b.w("embedding", V, H), ids)
        table = b.w("position", CONTEXT + 2, H)
        if "attention_mask" in given:
            counted = b.op("CumSum", given["attention_mask"], b.n(1))
            places = b.op("Add", b.op("Mul", counted, given["attention_mask"]), b.n(1))  # OPT's offset of 2
        elif "position_ids" in given:
            places = given["position_ids"]
        else:
            places = steps
        if self.positions == "learned":
            x = b.op("Add", x, b.op("Gather", table, places))
        elif self.positions == "sliced":
            x = b.op("Add", x, b.op("Slice", table, b.n([0]), b.op("Unsqueeze", length, b.n([0])), b.n([0])))
        mask = None
        if self.mask is not None:
            mask = self.mask(b, steps, b.op("Unsqueeze", steps, b.n([1])), sizes)
            if "attention_mask" in given and mask.name:
                seen = b.op("Cast", b.op("Unsqueeze", given["attention_mask"], b.n([1, 2])), to=int(BOOL))
                mask = b.op("And", mask, seen)
        for i in range(self.layers):
            x = self._layer(b, x, mask, i, steps)
        b.output(b.op("MatMul", x, b.w("head", H, self.outputs)), self.name)
        return b.program()

    def _layer(self, b: Tiny, x: ir.Value, mask: ir.Value | None, i: int, steps: ir.Value) -> ir.Value:
        hidden = self.hook(b, b.op("RMSNormalization", x, b.weight(f"norm{i}", np.ones(H)))) if i == 0 else x
        q, k, v = (b.op("MatMul", hidden, b.w(f"{name}{i}", H, width)) for name, width in
                   (("q", H), ("k", H // 2), ("v", H // 2)))  # fmt: skip
        kept = {"is_causal": int(self.is_causal), "softcap": self.softcap}
        if self.flat:
            y = b.op("Attention", q, k, v, mask, q_num_heads=HEADS, kv_num_heads=HEADS // 2, **kept)
        else:
            split = [b.op("Transpose", b.op("Reshape", t, b.n([0, 0, -1, SIZE])), perm=[0, 2, 1, 3])
                     for t in (q, k, v)]  # fmt: skip
            if self.positions == "rotary":
                split[:2] = [self._rotated(b, t, steps, i) for t in split[:2]]
            y = b.op("Attention", *split, mask, **kept)
            y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.n([0, 0, -1]))
        if self.merged:
            shape = b.op("Shape", y)
            y = b.op("MatMul", b.op("Reshape", y, b.n([-1, H])), b.w(f"o{i}", H, H))
            y = b.op("Reshape", y, shape)
        else:
            y = b.op("MatMul", y, b.w(f"o{i}", H, H))
        return b.op("Add", x, b.op("Relu", y))

    @staticmethod
    def _rotated(b: Tiny, x: ir.Value, steps: ir.Value, i: int) -> ir.Value:
        """Rotary embedding in halves, decomposed."""
        frequencies = b.n(1.0 / 100 ** (np.arange(SIZE // 2) / (SIZE // 2)), np.float32)
        angles = b.op("Mul", b.op("Cast", b.op("Unsqueeze", steps, b.n([1])), to=int(FLOAT)), frequencies)
        doubled = b.op("Concat", angles, angles, axis=-1)
        low = b.op("Slice", x, b.n([0]), b.n([SIZE // 2]), b.n([3]))
        high = b.op("Slice", x, b.n([SIZE // 2]), b.n([SIZE]), b.n([3]))
        turned = b.op("Concat", b.op("Neg", high), low, axis=3)
        cos, sin = b.op("Cos", doubled), b.op("Sin", doubled)
        return b.op("Add", b.op("Mul", x, cos), b.op("Mul", turned, sin))


def derived(net: Net) -> Program:
    program = net.program()
    result = run_pass(DeriveCache(), program)
    assert result.changed == 1, reasons(result)
    return program


def cached(program: Program) -> list[ir.Node]:
    return [n for n in program.entries["decode"].graph if n.op_type == "CachedAttention"]


def declined(net: Net) -> str:
    program = net.program()
    result = DeriveCache().run(program, PassContext())
    assert not result.changed and program.entries.keys() == {"main"} and program.decoding is None
    return reasons(result)


@pytest.mark.parametrize("name", MASKS)
def test_steps_equal_the_whole_sequence_with_every_mask(name: str) -> None:
    program = derived(Net(MASKS[name]))
    assert_steps_equal_whole(lowered(program))


@pytest.mark.parametrize("name", RECOGNISED)
def test_recognised_masks_cost_no_tensor(name: str) -> None:
    nodes = cached(derived(Net(MASKS[name])))
    assert len(nodes) == 2
    assert all(len(n.inputs) == 6 and n.attributes["window"].as_int() == RECOGNISED[name] for n in nodes)


def test_a_bias_leaves_out_what_the_operator_masks_by_itself() -> None:
    program = derived(Net(alibi))
    kinds = {n.op_type for n in program.entries["decode"].graph}
    assert not kinds & {"Where", "Greater", "LessOrEqual"}
    assert all(n.inputs[6] is not None for n in cached(program))


@pytest.mark.parametrize(
    "net",
    [
        Net(None, is_causal=True),
        Net(None, is_causal=True, flat=True),
        Net(positions="rotary"),
        Net(positions="sliced"),
        Net(softcap=2.0, mask=window(3)),
        Net(merged=True),
        Net(ids=INT32),
        Net(name="scores"),
        Net(layers=1),
        Net(extra=("attention_mask", "position_ids")),
        Net(extra=("position_ids",), mask=alibi),
    ],
)
def test_steps_equal_the_whole_sequence(net: Net) -> None:
    assert_steps_equal_whole(lowered(derived(net)))


def test_rotary_tables_cost_as_much_as_the_new_tokens() -> None:
    graph = derived(Net(positions="rotary")).entries["decode"].graph
    cosines = [n.outputs[0] for n in graph if n.op_type == "Cos"]
    assert {str(v.shape) for v in cosines} == {"[batch,1,tokens,8]"}


def test_the_interface_is_the_contract_s() -> None:
    program = derived(Net(extra=("attention_mask",), ids=INT32))
    assert [str(spec) for spec in program.inputs("decode")][:4] == [
        "tokens: int64[batch, tokens]",
        "past_lengths: int64[batch]",
        "select: int64[batch, selected]",
        "past_key_0: float32[batch, 2, capacity, 8]",
    ]
    assert [str(spec) for spec in program.outputs("decode")][:3] == [
        "logits: float32[batch, selected, 40]",
        "next: int64[batch, selected]",
        "present_key_0: float32[batch, 2, capacity, 8]",
    ]
    assert program.decoding is not None
    assert program.decoding.vocabulary == V and program.decoding.context == CONTEXT
    assert [s.input for s in program.decoding.state] == [
        "past_key_0", "past_value_0", "past_key_1", "past_value_1",
    ]  # fmt: skip


def test_weights_are_shared_with_main() -> None:
    program = derived(Net())
    ours, theirs = (program.entries[e].graph.initializers for e in ("decode", "main"))
    for name in ("embedding", "q0", "head"):
        assert ours[name] is not theirs[name]
        assert ours[name].const_value is theirs[name].const_value


def test_main_stays_as_it_is() -> None:
    before, after = Net().program(), derived(Net())
    assert [n.op_type for n in before.main.graph] == [n.op_type for n in after.main.graph]


def test_the_last_layer_computes_selected_tokens_only() -> None:
    graph = derived(Net()).entries["decode"].graph
    rows = {n.op_type: str(n.outputs[0].shape) for n in graph}
    assert rows["Relu"] == "[batch,selected,32]"
    assert next(str(n.outputs[0].shape) for n in graph if n.op_type == "Relu") == "[batch,tokens,32]"


@pytest.mark.parametrize("merged", [False, True])
def test_a_fixed_batch_stays_fixed(merged: bool) -> None:
    program = lowered(derived(Net(batch=1, merged=merged)))
    assert str(program.inputs("decode")[0]) == "tokens: int64[1, tokens]"
    stepper, ids = Stepper(program), list(range(3, 12))
    stepper.start(1)
    stepper.step([ids[:4]])
    logits, _ = stepper.step([ids[4:]])
    np.testing.assert_allclose(logits[0, 0], whole_logits(program, ids)[-1], rtol=1e-4, atol=1e-5)


def _mean(b: Tiny, x: ir.Value) -> ir.Value:
    return b.op("Sub", x, b.op("ReduceMean", x, b.n([1])))


def _convolution(b: Tiny, x: ir.Value) -> ir.Value:
    turned = b.op("Transpose", x, perm=[0, 2, 1])
    mixed = b.op("Conv", turned, b.w("conv", H, H, 3), pads=[1, 1])
    return b.op("Transpose", mixed, perm=[0, 2, 1])


def _shift(b: Tiny, x: ir.Value) -> ir.Value:
    return b.op(
        "Slice",
        b.op("Concat", x, x, axis=1),
        b.n([1]),
        b.op("Slice", b.op("Shape", x), b.n([1]), b.n([2])),
        b.n([1]),
    )


def _scrambled(b: Tiny, x: ir.Value) -> ir.Value:
    """[b, s, 2, h] read as [b, 2, s, h]: the shapes fit, the rows don't."""
    batch, length = (b.op("Slice", b.op("Shape", x), b.n([i]), b.n([i + 1])) for i in (0, 1))
    split = b.op("Reshape", x, b.op("Concat", batch, b.n([2]), length, b.n([H // 2]), axis=0))
    return b.op("Reshape", b.op("Relu", split), b.op("Concat", batch, length, b.n([H]), axis=0))


def _log_length(b: Tiny, x: ir.Value) -> ir.Value:
    length = b.op("Cast", b.op("Gather", b.op("Shape", x), b.n(1)), to=int(FLOAT))
    return b.op("Mul", x, b.op("Log", length))


def _switch(b: Tiny, x: ir.Value) -> ir.Value:
    """Another scale beyond 30 tokens."""
    long = b.op("Greater", b.op("Gather", b.op("Shape", x), b.n(1)), b.n(30))
    return b.op("Mul", x, b.op("Where", long, b.n(0.5, np.float32), b.n(1, np.float32)))


def _softmax(b: Tiny, x: ir.Value) -> ir.Value:
    return b.op("Softmax", x, axis=1)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net(None), "sees all positions"),
        (Net(prefix), "sees keys that come after it"),
        (Net(hook=_mean), "ReduceMean.* mixes positions"),
        (Net(hook=_convolution), "Conv .* is not known to keep positions apart"),
        (Net(hook=_shift), "Concat .* mixes positions"),
        (Net(hook=_scrambled), "Reshape .* is not known to keep positions apart"),
        (Net(hook=_log_length), "depends on how long the sequence becomes"),
        (Net(hook=_switch), "depends on how long the sequence becomes, from 30 tokens on"),
        (Net(hook=_softmax), "Softmax .* mixes positions"),
        (Net(length=16), "fixed length 16"),
        (Net(extra=("token_type_ids",)), "token_type_ids is neither"),
        (Net(outputs=7), "no output has logits of the vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_proved_is_declined_with_its_reason(net: Net, reason: str) -> None:
    import re

    text = declined(net)
    assert re.search(reason, text), text


def test_a_model_without_attention_is_no_candidate() -> None:
    b = Builder()
    x = b.input("x", ("batch", 4))
    b.output(b.op("Relu", x), "y")
    result = DeriveCache().run(b.program(), PassContext())
    assert not result.changed and not result.declined


@settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
)
@given(
    mask=st.sampled_from(sorted(MASKS)),
    positions=st.sampled_from(["learned", "rotary", "sliced", "none"]),
    merged=st.booleans(),
    softcap=st.sampled_from([0.0, 3.0]),
    layers=st.integers(1, 3),
    extra=st.sampled_from([(), ("position_ids",)]),
)
def test_any_combination_steps_like_the_whole(
    mask: str, positions: str, merged: bool, softcap: float, layers: int, extra: tuple[str, ...]
) -> None:
    net = Net(MASKS[mask], positions=positions, merged=merged, softcap=softcap, layers=layers, extra=extra)
    assert_steps_equal_whole(lowered(derived(net)), length=16)
