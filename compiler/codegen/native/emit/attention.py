"""Emitting FusedAttention: a specialised function for each set of facts, called for every layer."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from ..views import transposed
from .base import Entry, Operator, View, bare, row_major
from .linear import c_float
from .views import input_of, required

_ROTARY = {"": "ROTARY_NONE", "half": "ROTARY_HALF", "interleaved": "ROTARY_INTERLEAVED"}
_CACHES = {
    ir.DataType.FLOAT: "CACHE_F32",
    ir.DataType.FLOAT16: "CACHE_F16",
    ir.DataType.INT8: "CACHE_I8",
}
_HEADS_LAST = (0, 2, 1, 3)


def _rows(value: ir.Value, entry: Entry) -> View:
    """A view whose last axis is contiguous."""
    view = entry.view(value)
    return view if view.strides[-1] == 1 or view.shape[-1] == 1 else entry.contiguous(value)


def _at(view: View) -> str:
    """``strides`` of the kernel: of batch, head and token, 0 where an axis is broadcast."""
    pairs = zip(view.shape[:3], view.strides[:3], strict=True)
    return f"{{{', '.join('0' if size == 1 else bare(stride) for size, stride in pairs)}}}"


def _attention(node: ir.Node, entry: Entry) -> None:
    attributes = node.attributes
    query, key, value = (_rows(required(node, i), entry) for i in range(3))
    batch, heads, tokens, size = query.shape
    cached = input_of(node, 3) is not None
    angles = [entry.view(v) for i in (7, 8) if (v := input_of(node, i)) is not None]
    fields = [f".batch = {batch}", f".tokens = {tokens}"]
    fields.append(f".keys = {tokens if cached else key.shape[2]}")
    facts = [f".heads = {heads}", f".kv_heads = {key.shape[1]}", f".size = {size}"]
    facts.append(f".value_size = {value.shape[3]}")
    scale = attributes.get("scale")
    number = 1 / math.sqrt(int(size)) if scale is None else scale.as_float()
    facts.append(f".scale = {c_float(number)}")
    facts += [
        f".{fact} = {c_float(amount)}" for fact in ("softcap",) if (amount := attributes.get_float(fact, 0.0))
    ]
    facts.append(f".epsilon = {c_float(attributes.get_float('epsilon', 1e-6))}")
    facts += [f".{fact} = {n}" for fact in ("window", "causal") if (n := attributes.get_int(fact, 0))]
    sizes = list(fields)
    if cached:
        past = entry.view(required(node, 3))
        dtype = required(node, 3).dtype
        assert dtype is not None
        facts.append(f".cache = {_CACHES[dtype]}")
        sizes.append(f".capacity = {past.shape[2]}")
        fields.append(f".capacity = {past.shape[2]}")
    fields += [
        f".query = {bare(query.pointer)}",
        f".key = {bare(key.pointer)}",
        f".value = {bare(value.pointer)}",
    ]
    fields += [f".query_at = {_at(query)}", f".key_at = {_at(key)}", f".value_at = {_at(value)}"]
    if cached:
        fields += [
            f".past_key = {bare(entry.view(required(node, 3)).pointer)}",
            f".past_value = {bare(entry.view(required(node, 4)).pointer)}",
            f".lengths = {entry.contiguous(required(node, 5)).pointer}",
        ]
        for output, source in zip(node.outputs[1:], (3, 4), strict=True):
            entry.alias(output, entry.view(required(node, source)))
    bias = input_of(node, 6)
    if bias is not None:
        view = entry.view(bias)
        if view.strides and view.shape[-1] != 1 and view.strides[-1] not in (0, 1):
            view = entry.contiguous(bias)
        missing = 4 - len(view.shape)
        view = replace(view, shape=(1,) * missing + view.shape, strides=(0,) * missing + view.strides)
        fields += [f".bias = {view.pointer}", f".bias_at = {_at(view)}"]
        fields.append(f".bias_key = {0 if view.shape[-1] == 1 else view.strides[-1]}")
    if angles:
        cos, sin = (entry.contiguous(required(node, i)) for i in (7, 8))
        facts += [
            f".rotary = {_ROTARY[attributes.get_string('rotary', '')]}",
            f".pairs = {cos.shape[-1]}",
        ]
        apart = [0 if s == 1 else stride for s, stride in zip(cos.shape[:-1], cos.strides[:-1], strict=True)]
        fields += [f".cos = {cos.pointer}", f".sin = {sin.pointer}"]
        fields += [f".angle_batch = {bare(apart[0])}", f".angle_token = {bare(apart[1])}"]
    for name, index in (("query_norm", 9), ("key_norm", 10)):
        norm = input_of(node, index)
        if norm is not None:
            fields.append(f".{name} = {entry.contiguous(norm).pointer}")
            facts += [".key_norm = 1"] if name == "key_norm" else []

    shape = entry.sizes(node.outputs[0])
    memory = [shape[axis] for axis in _HEADS_LAST]
    strides = transposed(View("", "", tuple(memory), row_major(memory)), _HEADS_LAST).strides
    y = entry.new(node.outputs[0], strides)
    fields += [f".y = {y.pointer}", f".y_at = {_at(y)}"]
    function = entry.function(
        f"attention_{heads}x{size}" + ("_cached" if cached else "_causal" if ".causal = 1" in facts else ""),
        f"static const attention_spec NAME_spec = {{\n    {', '.join(facts)},\n}};\n\n"
        "static void NAME(worker *w, const attention_args *args)\n{\n"
        "    attention(w, &NAME_spec, args);\n}\n",
    )
    sized = f"(&{function}_spec, &(attention_args){{{', '.join(sizes)}}})"
    entry.scratch(f"attention_worker_bytes{sized}", f"attention_shared_bytes{sized}")
    entry.step(node, f"{function}(w, &(attention_args){{\n    {', '.join(fields)}}});")


def _reason(node: ir.Node) -> str | None:
    query, key, value = (v.shape if v is not None else None for v in node.inputs[:3])
    if query is None or key is None or value is None or not len(query) == len(key) == len(value) == 4:
        return "query, key or value is not of rank 4"
    if not all(isinstance(d, int) for d in (query[1], query[3], key[1], value[3])):
        return "its count of heads or their size varies"
    past = input_of(node, 3)
    if past is not None and past.dtype not in _CACHES:
        return f"its cache has dtype {past.dtype}"
    return None


OPERATORS = {"miaotui::FusedAttention": Operator(_attention, _reason)}
