"""A small decoder of random weights, with and without a KV cache, as an executable folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from miaotui.compiler.draft import Draft
from miaotui.compiler.ir.builder import INT32, INT64, Builder
from miaotui.compiler.manifest import PassRecord, Variant
from miaotui.compiler.options import Target
from miaotui.compiler.program import Decoding, Program, StateTensor
from miaotui.compiler.reference import Array
from support.folders import manifest_of

EOS = 256
VOCABULARY = 264
"""256 bytes, then ``<eos>``, ``<bos>``, ``<user>``, ``<assistant>``, ``<system>`` and three unused."""
SPECIAL = ("<eos>", "<bos>", "<user>", "<assistant>", "<system>")

Attention = Literal["gqa", "capacity", "standard"]


@dataclass(frozen=True)
class Tiny:
    """A decoder: learned positions, ``layers`` of attention and ReLU MLP; weights from ``seed``.

    ``attention``: com.microsoft GroupQueryAttention, with the capacity as total as on CUDA or with the exact
    one, or standard operators. ``ends``: whether it ever writes
    a special token.
    """

    attention: Attention = "gqa"
    context: int = 128
    vocabulary: int = VOCABULARY
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    seed: int = 0
    scale: float = 0.6
    positions: float = 2.0
    ends: bool = True

    @property
    def width(self) -> int:
        return self.hidden // self.heads

    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.seed)

        def matrix(*shape: int) -> Array:
            return (rng.standard_normal(shape) * self.scale / np.sqrt(shape[0]) * 2).astype(np.float32)

        made = {
            "embed": rng.standard_normal((self.vocabulary, self.hidden)).astype(np.float32),
            "position": rng.standard_normal((self.context, self.hidden)).astype(np.float32) * self.positions,
            "head": matrix(self.hidden, self.vocabulary) * 4,
        }
        if not self.ends:
            made["head"][:, 256:] = 0
        kv = self.kv_heads * self.width
        for i in range(self.layers):
            made |= {
                f"q{i}": matrix(self.hidden, self.hidden), f"k{i}": matrix(self.hidden, kv),
                f"v{i}": matrix(self.hidden, kv), f"o{i}": matrix(self.hidden, self.hidden),
                f"up{i}": matrix(self.hidden, 2 * self.hidden),
                f"down{i}": matrix(2 * self.hidden, self.hidden),
            }  # fmt: skip
        return made

    def decoding(self) -> Decoding:
        state = tuple(
            StateTensor(f"past_{kind}_{i}", f"present_{kind}_{i}")
            for i in range(self.layers)
            for kind in ("key", "value")
        )
        return Decoding(self.vocabulary, state, context=self.context)

    def program(self) -> Program:
        return Program(
            {"main": self._whole(), "decode": self._cached()},
            source={"framework": "onnx"},
            decoding=self.decoding(),
            context=self.context,
        )

    def logits(self, ids: list[int], source: Array | float = 0.0) -> Array:
        """float32[tokens, vocabulary] in numpy, all at once; ``source`` is added to the input."""
        w, t = self.weights(), len(ids)
        x = w["embed"][ids] + w["position"][:t] + source
        for i in range(self.layers):
            q = (x @ w[f"q{i}"]).reshape(t, self.heads, -1).swapaxes(0, 1)
            k, v = (
                np.repeat((x @ w[f"{n}{i}"]).reshape(t, self.kv_heads, -1).swapaxes(0, 1),
                          self.heads // self.kv_heads, 0)
                for n in "kv"
            )  # fmt: skip
            scores = np.where(np.tri(t, dtype=bool), q @ k.swapaxes(1, 2) / np.sqrt(self.width), -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            y = (p / p.sum(-1, keepdims=True)) @ v
            x = x + y.swapaxes(0, 1).reshape(t, -1) @ w[f"o{i}"]
            x = x + np.maximum(x @ w[f"up{i}"], 0) @ w[f"down{i}"]
        return np.asarray(x @ w["head"])

    def greedy(self, ids: list[int], count: int, eos: tuple[int, ...] = ()) -> list[int]:
        """The next ``count`` tokens, fewer if one of ``eos`` comes."""
        made: list[int] = []
        while len(made) < count and not (made and made[-1] in eos):
            made.append(int(self.logits([*ids, *made])[-1].argmax()))
        return made

    def _builder(self) -> tuple[Builder, dict[str, ir.Value]]:
        b = Builder()
        return b, {name: b.weight(name, array) for name, array in self.weights().items()}

    def _whole(self) -> ir.Model:
        b, w = self._builder()
        ids = b.input("input_ids", ("batch", "tokens"), INT64)
        zero, one, minus = b.weight("zero", np.int64(0)), b.weight("one", np.int64(1)), b.weight("m", [-1])
        length = b.op("Gather", b.op("Shape", ids), one)
        places = b.op("Range", zero, length, one)
        x = b.op("Add", b.op("Gather", w["embed"], ids), b.op("Gather", w["position"], places))
        hidden = b.op("Less", b.op("Unsqueeze", places, minus), places)
        for i in range(self.layers):
            q, k, v = self._split(b, w, x, i)
            x = self._finish(b, w, x, self._attend(b, q, k, v, hidden, i), i)
        b.output(b.op("MatMul", x, w["head"]), "logits")
        return b.model()

    def _cached(self) -> ir.Model:
        b, w = self._builder()
        ids = b.input("input_ids", ("batch", "tokens"), INT64)
        lengths = b.input("past_lengths", ("batch",), INT64)
        select = b.input("select", ("batch", "selected"), INT64)
        shape = ("batch", self.kv_heads, "capacity", self.width)
        past = [b.input(s.input, shape) for s in self.decoding().state]
        zero, one, minus = b.weight("zero", np.int64(0)), b.weight("one", np.int64(1)), b.weight("m", [-1])
        tokens = b.op("Gather", b.op("Shape", ids), one)
        steps = b.op("Range", zero, tokens, one)
        places = b.op("Add", b.op("Unsqueeze", lengths, minus), steps)
        last = b.weight("last", np.int64(self.context - 1))
        position = b.op("Gather", w["position"], b.op("Min", places, last))
        x = self._with_source(b, w, b.op("Add", b.op("Gather", w["embed"], ids), position))
        presents: list[ir.Value] = []
        for i in range(self.layers):
            if self.attention != "standard":
                q, k, v = (b.op("MatMul", x, w[f"{n}{i}"]) for n in "qkv")
                total = b.op("Add", b.op("ReduceMax", lengths, keepdims=0), tokens)
                if self.attention == "capacity":
                    total = b.op("Shape", past[2 * i], start=2, end=3)
                each = b.op("Sub", b.op("Add", lengths, tokens), one)
                y, *present = b.ops(
                    "GroupQueryAttention", q, k, v, past[2 * i], past[2 * i + 1],
                    b.op("Cast", each, to=INT32), b.op("Cast", total, to=INT32),
                    outputs=3, domain="com.microsoft", num_heads=self.heads, kv_num_heads=self.kv_heads,
                )  # fmt: skip
            else:
                q, k, v = self._split(b, w, x, i)
                at = b.op("Unsqueeze", places, b.weight(f"axes{i}", [1, 3]))
                present = [
                    b.op("ScatterElements", old, b.op("Expand", at, b.op("Shape", new)), new, axis=2)
                    for old, new in ((past[2 * i], k), (past[2 * i + 1], v))
                ]
                capacity = b.op("Gather", b.op("Shape", past[2 * i]), b.weight(f"two{i}", np.int64(2)))
                keys = b.op("Range", zero, capacity, one)
                hidden = b.op("Less", b.op("Unsqueeze", places, b.weight(f"a{i}", [1, 3])), keys)
                y = self._attend(b, q, present[0], present[1], hidden, i)
            presents.extend(present)
            x = self._finish(b, w, x, y, i)
        x = b.op("GatherND", x, b.op("Unsqueeze", select, minus), batch_dims=1)
        logits = b.op("MatMul", x, w["head"])
        following = b.op("ArgMax", logits, axis=-1, keepdims=0)
        b.output(logits, "logits")
        b.output(following, "next")
        for value, state in zip(presents, self.decoding().state, strict=True):
            b.output(value, state.output)
        return b.model()

    def _with_source(self, b: Builder, w: dict[str, ir.Value], x: ir.Value) -> ir.Value:
        """``x`` and what an encoder says; nothing here."""
        return x

    def _split(
        self, b: Builder, w: dict[str, ir.Value], x: ir.Value, i: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        def heads(name: str, count: int) -> ir.Value:
            flat = b.op("MatMul", x, w[f"{name}{i}"])
            split = b.op("Reshape", flat, b.weight(f"{name}_shape{i}", [0, 0, count, self.width]))
            return b.op("Transpose", split, perm=[0, 2, 1, 3])

        return heads("q", self.heads), heads("k", self.kv_heads), heads("v", self.kv_heads)

    def _attend(
        self, b: Builder, q: ir.Value, k: ir.Value, v: ir.Value, hidden: ir.Value, i: int
    ) -> ir.Value:
        k, v = (self._repeated(b, x, f"{name}{i}") for name, x in (("k", k), ("v", v)))
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = b.op("Mul", scores, b.weight(f"s{i}", np.float32(1 / np.sqrt(self.width))))
        scores = b.op("Where", hidden, b.weight(f"inf{i}", np.float32(-np.inf)), scores)
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        return b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.weight(f"flat{i}", [0, 0, -1]))

    def _repeated(self, b: Builder, x: ir.Value, name: str) -> ir.Value:
        """A key head for every query head, as exporters write it."""
        group = b.weight(f"group_{name}", [1, 1, self.heads // self.kv_heads, 1, 1])
        wide = b.op("Expand", b.op("Unsqueeze", x, b.weight(f"axis_{name}", [2])), group)
        return b.op("Reshape", wide, b.weight(f"join_{name}", [0, self.heads, -1, self.width]))

    def _finish(self, b: Builder, w: dict[str, ir.Value], x: ir.Value, y: ir.Value, i: int) -> ir.Value:
        x = b.op("Add", x, b.op("MatMul", y, w[f"o{i}"]))
        inner = b.op("Relu", b.op("MatMul", x, w[f"up{i}"]))
        return b.op("Add", x, b.op("MatMul", inner, w[f"down{i}"]))


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer_json() -> str:
    """A byte-level tokenizer without merges: token i is byte i, then the special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: number for number, character in enumerate(_byte_characters())}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return str(made.to_str())


def _byte_characters() -> list[str]:
    """The character that stands for each byte (GPT-2's table)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]


def write_decoder(
    folder: Path,
    tiny: Tiny | None = None,
    *,
    tokenizer: bool = True,
    template: str | None = TEMPLATE,
    config: Mapping[str, Any] | None = None,
    program: Program | None = None,
    declined: Sequence[str] = (),
) -> Tiny:
    """Write ``tiny`` as an executable folder. ``config``: generation_config.json."""
    tiny = Tiny() if tiny is None else tiny
    made = tiny.program() if program is None else program
    with Draft(folder) as draft:
        build = OnnxRuntimeBackend().build(made, Target(), draft.variant("cpu-ort"), draft.weights)
        files = {entry: f"variants/cpu-ort/{file}" for entry, file in build.entries.items()}
        passes = (PassRecord("derive-cache", 0, (), tuple(declined)),)
        variant = Variant("optimized", "cpu", "ort", files, build.settings, passes=passes)
        if tokenizer:
            settings = {"chat_template": template, "eos_token": "<eos>", "bos_token": "<bos>"}
            draft.asset("tokenizer/tokenizer.json", tokenizer_json().encode())
            draft.asset("tokenizer/tokenizer_config.json", json.dumps(settings).encode())
        if config is not None:
            draft.asset("generation_config.json", json.dumps(config).encode())
        draft.finish(replace(manifest_of(made, {"cpu-ort": variant}), decoding=made.decoding))
    return tiny
