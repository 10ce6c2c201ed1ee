"""Build the decode graph: data nodes over new tokens, rows of the rest, cached attention, selected logits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...compiler.dialect import MIAOTUI
from ...compiler.ir.constants import constant, is_constant
from ...compiler.program import Decoding, Dim, DimRange, Program, StateTensor
from ..base import decline
from .call import SELECTED, TOKENS, Call
from .encoder import Encoder, row_of_mask
from .evaluation import FAILURES, Probe, SizedEvaluator
from .masks import Judge, Mask
from .rows import Rows, Whole
from .tail import behind, selectable, tail_nodes
from .token_axes import Axes, TokenAxes, dims, rank
from .values import Values, logits_of
from .writer import Writer

BATCH, CAPACITY = "batch", "capacity"


@dataclass(frozen=True, slots=True)
class Built:
    """The entries, how they are driven, ranges of its dimensions, and what was found in a sentence."""

    entries: dict[str, ir.Model]
    decoding: Decoding
    dims: dict[str, DimRange]
    note: str


def build_decoder(program: Program, values: Values) -> Built:
    """The cached decoder of ``program``'s main entry. Raises: NoMatch with what stands against it."""
    logits = logits_of(values.graph, values.tokens)
    assert logits is not None
    needed = behind([logits])
    axes = TokenAxes(values, [n for n in values.graph if n in needed])
    if not axes.attention:
        decline("the logits depend on no Attention")
    if axes.axes[logits] != Axes(-3, -2):
        decline(f"{logits.name} is not [batch, sequence, vocabulary]")
    build = _Build(program, values, axes, logits, needed)
    return build.run()


class _Region:
    """Tokens that are computed together: all new ones, or the selected. ``ids`` has their shape."""

    __slots__ = ("made", "rows", "symbol")

    def __init__(self, rows: Rows, symbol: str) -> None:
        self.rows, self.symbol = rows, symbol
        self.made: dict[ir.Value, ir.Value] = {}


class _Build:
    def __init__(
        self, program: Program, values: Values, axes: TokenAxes, logits: ir.Value, needed: set[ir.Node]
    ) -> None:
        self.program, self.values, self.axes, self.logits, self.needed = program, values, axes, logits, needed
        self.evaluator = SizedEvaluator(values)
        self.write = write = Writer(values.graph)
        count = len(axes.attention)
        write.reserve("logits", "next", *(f"{t}_{k}_{i}" for t in ("past", "present")
                                          for k in ("key", "value") for i in range(count)))  # fmt: skip
        self.batch_size = batch = BATCH if values.batch is None else values.batch
        self.call = call = Call(write, str(values.tokens.name), batch)
        whole = Whole(write, self.evaluator, call.total)
        self.body = _Region(Rows(whole, call.positions), TOKENS)
        self.tail = _Region(Rows(whole, call.selected_positions), SELECTED)
        ids = call.ids
        if values.tokens.dtype not in (None, ir.DataType.INT64):
            ids = write.op("Cast", ids, to=int(values.tokens.dtype), dtype=values.tokens.dtype)
        self.body.made[values.tokens] = ids
        self.masks: dict[tuple[ir.Value, bool], tuple[Mask, ir.Value | None]] = {}
        self.checked: set[tuple[ir.Value, ir.Value]] = set()
        self.limit = self._limit()
        self.encoder = Encoder(values) if values.sources else None
        self.cross_masks: dict[ir.Value, ir.Value | None] = {}
        self.state: list[StateTensor] = []
        self.presents: list[tuple[ir.Value, str]] = []

    def _limit(self) -> int | None:
        bounds = [self.program.context]
        if self.values.sequence in self.program.dims:
            bounds.append(self.program.dims[self.values.sequence].maximum)
        known = [b for b in bounds if b is not None]
        return min(known) if known else None

    def run(self) -> Built:
        """Write everything. Raises: NoMatch."""
        tail = tail_nodes(self.axes, self.needed)
        for node in self.values.graph:
            if node in self.needed and any(o in self.axes.axes for o in node.outputs):
                self._node(node, self.tail if node in tail else self.body)
        logits = self._in(self.logits, self.tail)
        write = self.write
        following = write.op("ArgMax", logits, axis=-1, keepdims=0, dtype=ir.DataType.INT64)
        write.output(logits, "logits")
        write.output(following, "next")
        for value, name in self.presents:
            write.output(value, name)
        context = self._context()
        write.graph.opset_imports.setdefault(MIAOTUI, 1)
        model = write.model(self.program.main.ir_version)
        vocabulary = dims(self.logits)[-1]
        assert isinstance(vocabulary, int)
        decoding = Decoding(
            vocabulary, tuple(self.state), context=context, tokens=str(self.values.tokens.name)
        )
        entries = {"decode": model}
        if self.encoder is not None:
            entries["encode"] = self.encoder.model(self.program.main.ir_version)
            masks = tuple(str(v.name) for v in self.values.sources if "mask" in str(v.name))
            decoding = replace(
                decoding, encoder="encode", encoder_inputs=masks, start=_start(self.program.assets)
            )
        ranges = {TOKENS: DimRange(1, context), SELECTED: DimRange(0, context)}
        ranges |= {CAPACITY: DimRange(1, None)}
        return Built(entries, decoding, ranges, self._note())

    def _context(self) -> int | None:
        """Positions the model can hold: what its position tables have, and what the source says."""
        bounds = [] if self.limit is None else [self.limit]
        probe = Probe(self.call.positions(), self.call.total())
        for indices, length in self.body.rows.tables.items():
            found = probe.run(probe.cut(indices), np.array([0, 1, length - 1]), length)
            if found is not None and found.size == 3 and (np.diff(found.ravel()) == [1, length - 2]).all():
                bounds.append(length - int(found.ravel()[0]))
        return min(bounds) if bounds else None

    def _note(self) -> str:
        windows = sorted({m.window for m, _ in self.masks.values() if m.window})
        biased = any(m.bias is not None for m, _ in self.masks.values())
        text = f"{len(self.axes.attention)} layers keep their keys and values"
        if windows:
            text += f", windows of {', '.join(map(str, windows))}"
        return text + (", with a bias" if biased else "")

    def _in(self, value: ir.Value, region: _Region) -> ir.Value:
        """The copy of a data value in a region; selected from the body for the tail."""
        found = region.made.get(value)
        if found is not None:
            return found
        assert region is self.tail
        if not selectable(value, self.axes):
            decline(f"{value.name} can't be cut to the selected tokens")
        region.made[value] = self.call.selected(self.body.made[value])
        return region.made[value]

    def _node(self, node: ir.Node, region: _Region) -> None:
        if node in self.axes.attention:
            self._attention(node)
            return
        if node in self.axes.cross:
            self._cross(node, region)
            return
        inputs = [self._operand(node, index, region) for index in range(len(node.inputs))]
        if node.op_type == "Reshape" and region is self.tail:
            inputs[1] = self._explicit(node, inputs[1])
        made = self.write.copy(node, inputs)
        if node.op_type == "Reshape" and region is self.tail and not is_constant(inputs[1]):
            made[0].producer().attributes["allowzero"] = ir.AttrInt64("allowzero", 1)  # type: ignore[union-attr]
        for old, new in zip(node.outputs, made, strict=True):
            region.made[old] = new
            new.shape = self._shape(old, region)

    def _explicit(self, node: ir.Node, target: ir.Value | None) -> ir.Value | None:
        """A Reshape's target as sizes, none copied or inferred: no token may be selected."""
        source, out = node.inputs[1], node.outputs[0]
        sizes = constant(source)
        if sizes is not None:
            known = [d if n == -1 else int(n) for n, d in zip(sizes, dims(out), strict=True)]
            if 0 not in sizes or -1 not in sizes:
                return target
            if all(isinstance(n, int) for n in known):
                return self.write.ints(*(n for n in known if isinstance(n, int)))
        if sizes is None and source is not None and source in self.values.sized:
            try:
                if (self.evaluator.at(source, 2, 3) > 0).all():
                    return target
            except FAILURES:
                pass
        parts = []
        for dim in dims(out):
            if isinstance(dim, int):
                parts.append(self.write.ints(dim))
            elif dim in (self.values.batch, self.values.sequence):
                axis = 0 if dim == self.values.batch else 1
                parts.append(
                    self.write.op(
                        "Shape", self.call.select, start=axis, end=axis + 1, dtype=ir.DataType.INT64
                    )
                )
            else:
                decline(f"Reshape {node.name} has no known sizes where no token is selected")
        return self.write.op("Concat", *parts, axis=0)

    def _shape(self, value: ir.Value, region: _Region) -> ir.Shape | None:
        if value.shape is None:
            return None
        pattern = rf"\b{re.escape(self.values.sequence)}\b"
        renamed = [re.sub(pattern, region.symbol, d) if isinstance(d, str) else d for d in dims(value)]
        return ir.Shape([_sorted_factors(d) for d in renamed])

    def _operand(self, node: ir.Node, index: int, region: _Region) -> ir.Value | None:
        value = node.inputs[index]
        if value is None:
            return None
        if value in self.axes.axes:
            return self._in(value, region)
        where = self.axes.rows.get((node, index))
        if where is not None:
            return self._rows(value, where, region)
        return self._plain(value, region)

    def _rows(self, value: ir.Value, where: Axes, region: _Region) -> ir.Value:
        """The rows of a sized operand, checked by evaluation."""
        written = region.rows(value, where.token, where.batch)
        if (written, value) not in self.checked:
            positions = self.call.positions() if region is self.body else self.call.selected_positions()
            Probe(positions, self.call.total()).check(value, written, self.evaluator, self.limit)
            self.checked.add((written, value))
        return written

    def _plain(self, value: ir.Value, region: _Region) -> ir.Value:
        """A size: what it is for the tokens of the region."""
        if value in region.made:
            return region.made[value]
        if value not in self.values.sized:
            return self.write.static(value)
        node = value.producer()
        if node is None:
            decline(f"{value.name} is read as a size")
        source = node.inputs[0]
        given = source in self.values.data or source in self.values.substituted
        if node.op_type == "Shape" and node.domain == "" and given:
            assert source is not None
            inputs: list[ir.Value | None] = [self._shape_source(source, region)]
        else:
            inputs = [None if v is None else self._plain(v, region) for v in node.inputs]
        for old, new in zip(node.outputs, self.write.copy(node, inputs, named=False), strict=True):
            region.made[old] = new
            new.shape = old.shape
        return region.made[value]

    def _shape_source(self, source: ir.Value, region: _Region) -> ir.Value:
        if source is self.values.tokens or source in self.values.substituted:
            return self.call.ids if region is self.body else self.call.select
        return self._in(source, region)

    # attention

    def _attention(self, node: ir.Node) -> None:
        write, number = self.write, len(self.state) // 2
        query, key, value = (self._heads(node, index) for index in range(3))
        attributes = node.attributes
        width = dims_of(query, node)[3]
        scale = attributes["scale"].as_float() if "scale" in attributes else 1 / math.sqrt(width)
        mask, bias = self._mask(node)
        past = []
        for kind, new in (("key", key), ("value", value)):
            heads, size = dims_of(new, node)[1], dims_of(new, node)[3]
            assert new.dtype is not None
            shape = [self.batch_size, heads, CAPACITY, size]
            past.append(write.input(f"past_{kind}_{number}", new.dtype, shape))
        added = [] if bias is None else [bias]
        made = write.ops(
            "CachedAttention", query, key, value, *past, self.call.lengths, *added, outputs=3, domain=MIAOTUI,
            scale=float(scale), softcap=attributes.get_float("softcap", 0.0), window=mask.window,
        )  # fmt: skip
        producer = made[0].producer()
        assert producer is not None
        producer.metadata_props.update(node.metadata_props)
        output = node.outputs[0]
        if query.shape is not None and value.shape is not None:
            made[0].shape = ir.Shape([*query.shape[:3], value.shape[3]])
        result = made[0]
        if rank(output) == 3:
            result = write.op("Transpose", result, perm=[0, 2, 1, 3])
            result = write.op("Reshape", result, write.ints(0, 0, -1))
        result.name = output.name
        result.shape = self._shape(output, self.body)
        self.body.made[output] = result
        for kind, present in zip(("key", "value"), made[1:], strict=True):
            name = f"present_{kind}_{number}"
            self.presents.append((present, name))
            self.state.append(StateTensor(f"past_{kind}_{number}", name))

    def _cross(self, node: ir.Node, region: _Region) -> None:
        """Attention to the source: keys and values come from the encoder's entry."""
        assert self.encoder is not None
        number = self.axes.cross.index(node)
        inputs: list[ir.Value | None] = [self._operand(node, 0, region)]
        for kind, value in zip(("key", "value"), node.inputs[1:3], strict=True):
            assert value is not None
            inputs.append(self._from_encoder(f"cross_{kind}_{number}", value, self.encoder.copy(value)))
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None:
            if mask not in self.cross_masks:
                self.cross_masks[mask] = self._cross_mask(mask)
            one_row = self.cross_masks[mask]
            if one_row is not None:
                write = self.write
                shape = write.op("Shape", inputs[0], start=2, end=3, dtype=ir.DataType.INT64)
                target = write.op("Concat", write.ints(1, 1), shape, write.ints(1), axis=0)
                inputs.append(write.op("Expand", one_row, target))
        output = self.write.copy(node, inputs)[0]
        output.shape = self._shape(node.outputs[0], region)
        region.made[node.outputs[0]] = output

    def _cross_mask(self, mask: ir.Value) -> ir.Value | None:
        """The mask's only row, from the encoder; None if nothing is masked. Raises: NoMatch."""
        assert self.encoder is not None
        if not row_of_mask(mask, self.evaluator):
            return None
        number = sum(v is not None for v in self.cross_masks.values())
        return self._from_encoder(f"cross_mask_{number}", mask, self.encoder.row(mask))

    def _from_encoder(self, name: str, source: ir.Value, made: ir.Value) -> ir.Value:
        """An input that is an output of the encoder's entry, of the same name."""
        assert self.encoder is not None and made.dtype is not None
        shape = [1 if d == self.values.sequence else d for d in dims(source)]
        self.encoder.output(made, name)
        return self.write.input(name, made.dtype, shape)

    def _heads(self, node: ir.Node, index: int) -> ir.Value:
        """An operand of attention as [batch, heads, tokens, size]."""
        value = node.inputs[index]
        assert value is not None
        made = self._in(value, self.body)
        if rank(value) == 4:
            return made
        count = node.attributes.get_int("q_num_heads" if index == 0 else "kv_num_heads", 0)
        hidden = dims(value)[-1]
        if not count or not isinstance(hidden, int):
            decline(f"Attention {node.name} has no known number of heads")
        split = self.write.op("Reshape", made, self.write.ints(0, 0, count, hidden // count))
        turned = self.write.op("Transpose", split, perm=[0, 2, 1, 3])
        turned.shape = ir.Shape([self.batch_size, count, TOKENS, hidden // count])
        return turned

    def _mask(self, node: ir.Node) -> tuple[Mask, ir.Value | None]:
        value = node.inputs[3] if len(node.inputs) > 3 else None
        causal = bool(node.attributes.get_int("is_causal", 0))
        if value is None:
            if not causal:
                decline(f"Attention {node.name} sees all positions: the model is no causal decoder")
            return Mask(), None
        if (value, causal) not in self.masks:
            rows = cache(lambda v: self.body.rows(v, -2, -4))
            probe = Probe(self.call.positions(), self.call.total())
            mask = Judge(self.evaluator, probe, self.limit).judge(value, rows, causal)
            written = None if mask.bias is None else self._bias(rows(mask.bias), mask.bias, node)
            self.masks[value, causal] = mask, written
        return self.masks[value, causal]

    def _bias(self, written: ir.Value, source: ir.Value, node: ir.Node) -> ir.Value:
        """[batch or 1, heads or 1, tokens, total or 1] in the dtype of the scores."""
        write, query = self.write, node.inputs[0]
        dtype = None if query is None else query.dtype
        assert dtype is not None
        if source.dtype == ir.DataType.BOOL:
            zero = write.const(np.zeros((), dtype.numpy()), "zero")
            lowest = write.const(np.asarray(np.finfo(dtype.numpy()).min, dtype.numpy()), "lowest")
            written = write.op("Where", written, zero, lowest, dtype=dtype)
        elif source.dtype != dtype:
            written = write.op("Cast", written, to=int(dtype), dtype=dtype)
        target = write.op("Concat", write.ints(1, 1), self.call.tokens(), write.ints(1), axis=0)
        return write.op("Expand", written, target)


def _start(assets: Mapping[str, Path | bytes]) -> int | None:
    """The token a decoder begins with, where the source's generation settings say so."""
    found = assets.get("generation_config.json")
    if found is None:
        return None
    try:
        start = json.loads(found if isinstance(found, bytes) else found.read_bytes())[
            "decoder_start_token_id"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return start if isinstance(start, int) else None


def _sorted_factors(dim: Dim) -> Dim:
    """A product of sizes as inference writes it."""
    parts = dim.split("*") if isinstance(dim, str) else []
    return "*".join(sorted(parts)) if len(parts) > 1 and all(p.isidentifier() for p in parts) else dim


def dims_of(value: ir.Value, node: ir.Node) -> list[int]:
    """Sizes of [batch, heads, tokens, size], of which heads and size must be known. Raises: NoMatch."""
    shape = [] if value.shape is None else [d if isinstance(d, int) else 0 for d in value.shape]
    if len(shape) != 4 or not shape[1] or not shape[3]:
        decline(f"Attention {node.name} has no known number of heads or head size")
    return shape
