"""Decoders that come with past inputs and present outputs: the same contract is derived from them."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.program import Program
from miaotui.passes.incremental import DeriveCache
from support.rewriting import reasons, run_pass
from support.stepping import Stepper, lowered

V, H, HEADS, SIZE, CONTEXT = 40, 32, 4, 8, 256


def decoder(style: str, layers: int = 2, masked: bool = True, copied: bool = False) -> Program:
    """Learned positions behind the past; ``style``: past joined by Concat, or by the operator Attention."""
    b, random = Builder(), np.random.default_rng(0)

    def w(name: str, *shape: int) -> ir.Value:
        return b.weight(name, random.standard_normal(shape) / np.sqrt(shape[0]))

    def n(value: object) -> ir.Value:
        return b.weight(f"n{len(b.graph.initializers)}", np.asarray(value, np.int64))

    ids = b.input("input_ids", ("batch", "sequence"), INT64)
    mask_input = b.input("attention_mask", ("batch", "past + sequence"), INT64) if masked else None
    pasts = [
        [b.input(f"past_key_values.{i}.{kind}", ("batch", HEADS, "past", SIZE)) for kind in ("key", "value")]
        for i in range(layers)
    ]
    one = n(1)
    held = b.op("Gather", b.op("Shape", pasts[0][0]), n(2))
    total = b.op("Add", held, b.op("Gather", b.op("Shape", ids), one))
    places = b.op("Range", held, total, one)
    keys = b.op("Range", n(0), total, one)
    seen = b.op("LessOrEqual", keys, b.op("Unsqueeze", places, n([1])))
    if mask_input is not None:
        padding = b.op("Cast", b.op("Unsqueeze", mask_input, n([1, 2])), to=int(BOOL))
        seen = b.op("And", seen, padding)
    x = b.op("Add", b.op("Gather", w("embed", V, H), ids), b.op("Gather", w("position", CONTEXT, H), places))
    presents: list[ir.Value] = []
    for i in range(layers):
        q, k, v = (
            b.op("Transpose", b.op("Reshape", b.op("MatMul", x, w(f"{c}{i}", H, H)), n([0, 0, HEADS, SIZE])),
                 perm=[0, 2, 1, 3])
            for c in "qkv"
        )  # fmt: skip
        if style == "attention":
            y, *present = b.ops("Attention", q, k, v, seen, *pasts[i], outputs=3)
        else:
            present = [b.op("Concat", past, new, axis=-2) for past, new in zip(pasts[i], (k, v), strict=True)]
            y = b.op("Attention", q, *present, seen)
        presents += [b.op("Identity", p) for p in present] if copied else present
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), n([0, 0, -1]))
        x = b.op("Add", x, b.op("Relu", b.op("MatMul", y, w(f"o{i}", H, H))))
    b.output(b.op("MatMul", x, w("head", H, V)), "logits")
    for i, value in enumerate(presents):
        b.output(value, f"present.{i // 2}.{'key' if i % 2 == 0 else 'value'}")
    return b.program()


@pytest.mark.parametrize("style", ["concat", "attention"])
@pytest.mark.parametrize(("masked", "copied"), [(True, False), (False, True)])
def test_a_decoder_with_a_past_of_its_own_gets_the_contract_s_cache(
    style: str, masked: bool, copied: bool
) -> None:
    program = decoder(style, masked=masked, copied=copied)
    result = run_pass(DeriveCache(), program)
    assert result.changed == 1, reasons(result)
    names = [spec.name for spec in program.inputs("decode")]
    assert names[:5] == ["input_ids", "past_lengths", "select", "past_key_0", "past_value_0"]
    assert not any("past_key_values" in name or "mask" in name for name in names)
    made = lowered(program)
    ids = np.random.default_rng(1).integers(0, V, (1, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for i in range(2):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{i}.{kind}"] = np.zeros((1, HEADS, 0, SIZE), np.float32)
    import onnxruntime as ort

    session = ort.InferenceSession(ir.to_proto(decoder(style, masked=masked).main).SerializeToString())
    given = {i.name: feeds[i.name] for i in session.get_inputs()}
    (wanted,) = session.run(["logits"], given)
    stepper = Stepper(made)
    stepper.start(1)
    at = 0
    for size in (5, 1, 1, 3, 1, 1):
        logits, _ = stepper.step([ids[0, at : at + size].tolist()])
        at += size
        np.testing.assert_allclose(logits[0, 0], wanted[0, at - 1], rtol=1e-4, atol=1e-5)


def test_main_keeps_its_past() -> None:
    program = decoder("concat")
    before = [str(spec) for spec in (*program.inputs(), *program.outputs())]
    run_pass(DeriveCache(), program)
    assert [str(spec) for spec in (*program.inputs(), *program.outputs())] == before


def test_it_compiles_and_the_cache_is_proved(tmp_path: Path) -> None:
    ir.save(decoder("concat").main, tmp_path / "model.onnx")
    with miaotui.compile(tmp_path / "model.onnx", timing=0.0, threads=1, backend="ort") as executable:
        assert executable.report["error"]["ok"]
        assert "decode logits" in executable.report["error"]["outputs"]
