"""A decoder's cached entry written by hand, before lowering: Llama-like layers, and what families vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.constants import constant_tensor
from miaotui.compiler.ir.quantized import BlockedWeight, emit_blocked
from miaotui.compiler.ir.rewrite import Rewriter
from miaotui.compiler.program import Decoding, Program, StateTensor

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Rotary = Literal["none", "half", "interleaved", "table", "by length", "keys only"]


@dataclass(frozen=True)
class Layers:
    """``rotated``: elements of a head that are rotated, 0 for all. ``packed``: q, k and v in one product."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    layers: int = 2
    hidden: int = 64
    inner: int = 96
    vocabulary: int = 50
    context: int | None = 40
    rotary: Rotary = "half"
    rotated: int = 0
    norms: bool = False
    packed: bool = False
    alibi: bool = False
    scale: float | None = None
    softcap: float = 0.0
    window: int = 0
    tied: bool = True
    seed: int = 0

    def program(self) -> Program:
        """The program with the one entry ``decode``; weights by name, [rows, columns] as torch has them."""
        return Program({"decode": self.model()}, decoding=self.decoding(), context=self.context)

    def decoding(self) -> Decoding:
        names = [f"{kind}_{i}" for i in range(self.layers) for kind in ("key", "value")]
        state = tuple(StateTensor(f"past_{name}", f"present_{name}") for name in names)
        return Decoding(self.vocabulary, state, self.context)

    def model(self) -> ir.Model:
        made = _Writing(self)
        return made.model()

    def feeds(self, past: list[int], tokens: int, selected: int = 1, capacity: int = 24) -> Arrays:
        """Random tokens and a random cache; positions beyond a row's past hold garbage."""
        rng, batch = np.random.default_rng(7), len(past)
        made: Arrays = {
            "input_ids": rng.integers(0, self.vocabulary, (batch, tokens)),
            "past_lengths": np.array(past, np.int64),
            "select": np.tile(np.arange(tokens - selected, tokens), (batch, 1)),
        }
        shape = (batch, self.kv_heads, capacity, self.size)
        for state in self.decoding().state:
            made[state.input] = rng.standard_normal(shape).astype(np.float32)
        return made


class _Writing:
    def __init__(self, layers: Layers) -> None:
        self.f, self.b, self.rng = layers, Builder(), np.random.default_rng(layers.seed)

    def weight(self, name: str, rows: int, columns: int) -> ir.Value:
        return self.b.weight(name, self.rng.standard_normal((rows, columns)) / np.sqrt(columns))

    def linear(self, x: ir.Value, name: str, rows: int, columns: int) -> ir.Value:
        turned = self.b.op("Transpose", self.weight(name, rows, columns), perm=[1, 0])
        return self.b.op("MatMul", x, turned, name=f"{name}_out")

    def ints(self, *values: int) -> ir.Value:
        return self.b.weight(f"ints_{len(self.b.graph.initializers)}", np.array(values, np.int64))

    def norm(self, x: ir.Value, name: str, size: int) -> ir.Value:
        return self.b.op("RMSNormalization", x, self.b.weight(name, self.rng.random(size) + 0.5), axis=-1)

    def split(self, x: ir.Value, heads: int, norm: str = "") -> ir.Value:
        parts = self.b.op("Reshape", x, self.ints(0, 0, heads, self.f.size))
        parts = self.norm(parts, norm, self.f.size) if norm else parts
        return self.b.op("Transpose", parts, perm=[0, 2, 1, 3])

    def model(self) -> ir.Model:
        f, b = self.f, self.b
        ids = b.input("input_ids", ("batch", "tokens"), INT64)
        lengths = b.input("past_lengths", ("batch",), INT64)
        select = b.input("select", ("batch", "selected"), INT64)
        shape = ("batch", f.kv_heads, "capacity", f.size)
        past = {s.input: b.input(s.input, shape) for s in f.decoding().state}
        zero, one = b.weight("zero", np.int64(0)), b.weight("one", np.int64(1))
        tokens = b.op("Gather", b.op("Shape", ids), one)
        places = b.op("Add", b.op("Unsqueeze", lengths, self.ints(1)), b.op("Range", zero, tokens, one))
        total = b.op("Add", b.op("ReduceMax", lengths, keepdims=0), tokens)
        turn = self.rotation(places, total)
        bias = self.alibi(places, b.op("Range", zero, total, one)) if f.alibi else None
        table = self.weight("embed", f.vocabulary, f.hidden)
        x = b.op("Gather", table, ids)
        present = []
        for i in range(f.layers):
            h = self.norm(x, f"norm_{i}", f.hidden)
            q, k, v = self.heads(h, i)
            q, k = (turn(q) if f.rotary != "keys only" else q), turn(k)
            attributes: dict[str, Any] = {"softcap": f.softcap, "window": f.window}
            if f.scale is not None:
                attributes["scale"] = f.scale
            inputs = [q, k, v, past[f"past_key_{i}"], past[f"past_value_{i}"], lengths]
            y, *kept = b.ops(
                "CachedAttention", *inputs, *([] if bias is None else [bias]),
                outputs=3, domain="miaotui", **attributes,
            )  # fmt: skip
            present += kept
            y = b.op("Transpose", y, perm=[0, 2, 1, 3])
            y = b.op("Reshape", y, self.ints(0, 0, f.heads * f.size))
            x = b.op("Add", x, self.linear(y, f"o_{i}", f.hidden, f.heads * f.size))
            h = self.norm(x, f"post_{i}", f.hidden)
            gate, up = (self.linear(h, f"{n}_{i}", f.inner, f.hidden) for n in ("gate", "up"))
            h = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
            x = b.op("Add", x, self.linear(h, f"down_{i}", f.hidden, f.inner))
        x = b.op("GatherND", x, b.op("Unsqueeze", select, self.ints(2)), batch_dims=1)
        x = self.norm(x, "norm", f.hidden)
        head = table if f.tied else self.weight("head", f.vocabulary, f.hidden)
        logits = b.op("MatMul", x, b.op("Transpose", head, perm=[1, 0]))
        b.output(logits, "logits")
        b.output(b.op("ArgMax", logits, axis=-1, keepdims=0), "next")
        for value, state in zip(present, f.decoding().state, strict=True):
            b.output(value, state.output)
        return b.model()

    def heads(self, x: ir.Value, i: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        f = self.f
        sizes = (("q", f.heads), ("k", f.kv_heads), ("v", f.kv_heads))
        widths = [count * f.size for _, count in sizes]
        if f.packed:
            wide = self.linear(x, f"qkv_{i}", sum(widths), f.hidden)
            flat = list(self.b.ops("Split", wide, self.ints(*widths), outputs=3, axis=-1))
        else:
            flat = [self.linear(x, f"{n}_{i}", w, f.hidden) for (n, _), w in zip(sizes, widths, strict=True)]
        q, k, v = (
            self.split(part, count, f"{n}_norm_{i}" if f.norms and n != "v" else "")
            for part, (n, count) in zip(flat, sizes, strict=True)
        )
        return q, k, v

    def rotation(self, places: ir.Value, total: ir.Value) -> Callable[[ir.Value], ir.Value]:
        f, b = self.f, self.b
        if f.rotary == "none":
            return lambda x: x
        pairs = (f.rotated or f.size) // 2
        attributes: dict[str, int] = {"interleaved": int(f.rotary == "interleaved")}
        if f.rotated:
            attributes["rotary_embedding_dim"] = f.rotated
        frequency = 50.0 ** -(np.arange(pairs) / pairs)
        if f.rotary == "table":
            angles = np.arange(64)[:, None] * frequency
            tables = [b.weight(n, fn(angles)) for n, fn in (("cos", np.cos), ("sin", np.sin))]
            return lambda x: b.op("RotaryEmbedding", x, *tables, places, **attributes)
        at = b.op("Unsqueeze", b.op("Cast", places, to=ir.DataType.FLOAT), self.ints(2))
        if f.rotary == "by length":
            at = b.op("Div", at, b.op("Cast", total, to=ir.DataType.FLOAT))
        angles = b.op("Mul", at, b.weight("frequency", frequency))
        cos, sin = b.op("Cos", angles), b.op("Sin", angles)
        return lambda x: b.op("RotaryEmbedding", x, cos, sin, **attributes)

    def alibi(self, places: ir.Value, keys: ir.Value) -> ir.Value:
        """[batch, heads, tokens, total]: how far a key lies back, times the head's slope."""
        b = self.b
        back = b.op("Sub", keys, b.op("Unsqueeze", places, self.ints(1, 3)))
        slopes = b.weight("slopes", 2.0 ** -np.arange(1, self.f.heads + 1).reshape(-1, 1, 1))
        return b.op("Mul", b.op("Cast", back, to=ir.DataType.FLOAT), slopes)


def block_weights(program: Program, make: Callable[[str, Array], BlockedWeight | None]) -> None:
    """Swap the two-dimensional weights for which ``make(name, array)`` gives one for blocked weights."""
    for model in program.entries.values():
        for value in tuple(model.graph.initializers.values()):
            tensor = constant_tensor(value)
            if tensor is None or len(tensor.shape) != 2:
                continue
            blocked = make(str(value.name), tensor.numpy())
            if blocked is not None:
                first = min((u.node for u in value.uses()), key=list(model.graph).index)
                name = str(value.name)
                value.replace_all_uses_with(emit_blocked(blocked, name, Rewriter(first)))
                model.graph.initializers.pop(name)


def quantized(
    array: Array,
    bits: int = 4,
    block: int = 32,
    *,
    zero: bool = False,
    offset: bool = False,
    signed: bool = False,
) -> BlockedWeight:
    """Some quantization of ``array`` [rows, columns], round to nearest: the tests' own."""
    rows, columns = array.shape
    parts = array.reshape(rows, -1, block).astype(np.float64)
    top = (1 << bits) - 1
    low, high = parts.min(-1), parts.max(-1)
    if zero or offset:
        scale = np.maximum((high - low) / top, 1e-9)
        codes = np.clip(np.round((parts - low[..., None]) / scale[..., None]), 0, top)
        start = np.clip(np.round(-low / scale), 0, top) if zero else np.zeros_like(low)
        if zero:
            codes = np.clip(np.round(parts / scale[..., None]) + start[..., None], 0, top)
        shift = low if offset else None
    else:
        scale = np.maximum(np.abs(parts).max(-1) / (top // 2), 1e-9)
        start, shift = np.full_like(low, (top + 1) // 2), None
        codes = np.clip(np.round(parts / scale[..., None]) + start[..., None], 0, top)
    if signed:
        half = (top + 1) // 2
        codes, start = codes - half, start - half
        if offset and shift is not None:
            shift = shift + half * scale
            start = np.zeros_like(start)
    dtype = {(4, False): "UINT4", (4, True): "INT4", (8, False): "UINT8", (8, True): "INT8"}[bits, signed]
    kind = ir.DataType[dtype]
    keep = np.any(start != 0)
    return BlockedWeight(
        ir.Tensor(codes.reshape(rows, columns).astype(kind.numpy()), dtype=kind),
        ir.tensor(scale.astype(np.float32)),
        ir.Tensor(start.astype(kind.numpy()), dtype=kind) if keep else None,
        ir.tensor(shift.astype(np.float32)) if offset and shift is not None else None,
        block,
    )


def ort_decode(
    program: Program, feeds: Mapping[str, Array], entry: str = "decode", in_place: bool = False
) -> Arrays:
    """Outputs of an entry in ONNX Runtime on CPU by name; ``in_place``: past and present share memory."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, 1
    data = ir.to_proto(program.entries[entry]).SerializeToString()
    session = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    if not in_place:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    binding = session.io_binding()
    held = {n: ort.OrtValue.ortvalue_from_numpy(np.array(array)) for n, array in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for name in names:
        if name.startswith("present"):
            binding.bind_ortvalue_output(name, held[name.replace("present", "past")])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    outputs = zip(names, binding.get_outputs(), strict=True)
    return {name: value.numpy().copy() for name, value in outputs}  # the memory is the binding's
