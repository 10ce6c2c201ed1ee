"""8-bit activations for products of integers: by row as they come, or by ranges measured before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.provenance import add_passes
from ...compiler.program import Program
from ...compiler.reference import Array
from ..approximation import Approximation
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from ..histograms import RANGES, Histogram, RangeRule, Scale
from ..moments import Moment, Moments, joined
from ..weight_uses import WeightUses, weight_uses
from .blocks import rounded_weight
from .grids import Rounding
from .integer_conv import ConvWork, to_measure
from .integer_linear import FLOAT, MIDDLE, Emitter, readers_reason, zero_point
from .row_factors import row_factors
from .weights import METHODS

MODES = ("auto", "dynamic", "static")
_LOGITS = 1024
"""Rows from which on an output layer over tokens is taken for a language model's."""


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Round activations and weights to 8 bits, so that ONNX Runtime multiplies integers.

    Weights get a scale per output channel. ``mode``: ``dynamic`` finds the scale of a linear layer's
    activations when it runs; ``static`` takes ranges measured on calibration data, for convolutions and what
    lies between them too; ``auto`` is static for convolutions and dynamic for linear layers. ``per``: a
    dynamic scale for each ``row``, which keeps a token's rounding its own, or one for the whole ``tensor``.
    ``range``: of static scales, ``minmax``, ``percentile`` or ``entropy``. ``percentile``: share of values
    that is not clipped. ``bits``: of weights; 0 is 8, or 7 on CPUs whose products of 8 bits would saturate.
    ``method``: how weights of linear layers are rounded, as in quantize-weights. Where activations were
    measured, channels are evened out by factors that the weights take back. ``keep``: parts of names of
    weights that are left alone. ``least``: elements from which on a weight is worth it. A language model's
    weights are left to blocks, which are as fast for one token and more exact.
    """

    name: ClassVar[str] = "quantize-activations"

    mode: str = "auto"
    per: str = "row"
    range: str = "minmax"
    percentile: float = 99.99
    bits: int = 0
    method: str = "search"
    keep: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        offers = {"mode": MODES, "per": ("row", "tensor"), "range": RANGES, "method": METHODS}
        for name, offered in offers.items():
            value = getattr(self, name)
            if value not in offered:
                fact = f"{name}={value!r} is not offered"
                raise OptionError(place, fact, f"use {', '.join(offered)}")
        if self.bits not in (0, 7, 8):
            raise OptionError(place, f"bits={self.bits} is not offered", "use 8, or 7 for CPUs without VNNI")
        RangeRule(self.range, self.percentile)

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every linear layer, and with measured ranges every convolution."""
        hits: list[Note] = []
        declined: list[Note] = []
        made: list[ir.Node] = []
        language = self.mode == "auto" and _is_language_model(program)
        measured = self._measured(program, context)
        for model in program.entries.values():
            emitter = Emitter(model.graph)
            layers: list[Layer] = []
            for value in tuple(model.graph.initializers.values()):
                try:
                    uses = weight_uses(value, self.least)
                    chosen = context.chosen(self, str(value.name))
                    if chosen is None:
                        decline("the budget keeps it")
                    if language:
                        decline("a language model's weights are rounded in blocks")
                    layers.append(chosen._layer(value, uses, measured))
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(str(value.name), left.reason))
            factors = row_factors_of(layers, context.moments)
            for layer in layers:
                hits.append(Note(layer.name, self._rounded(layer, factors, emitter, context)))
                if not layer.value.uses():
                    model.graph.initializers.pop(layer.name, None)
            made += emitter.made
            if self.mode != "dynamic":
                rule = RangeRule(self.range, self.percentile)
                work = ConvWork(measured, rule, self._greatest(context), self.keep)
                work.run(model.graph)
                hits += work.hits
                declined += work.declined
                made += work.made
        for node in made:
            add_passes(node, [self.name])
        return PassResult(len(hits), tuple(hits), tuple(declined))

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The weight in 8 bits, a scale per output; what rounding its activations costs is not in it."""
        if any(part in name for part in self.keep) or not uses.multiplied or tensor.dtype != FLOAT:
            return None
        try:
            readers_reason(uses.multiplied)
        except NoMatch:
            return None
        rows, columns = tensor.shape.numpy()[:: -1 if uses.turned else 1]
        bits = 7 if self._greatest(context) < 127 else 8
        rounding = Rounding(bits, int(columns), "symmetric", "search", sweeps=1, ordered=True)
        array = rounded_weight(tensor, uses.turned, rounding, None).weight.numpy()
        size = rows * columns + 4 * rows
        table = tensor.nbytes if uses.look_ups else 0
        return Approximation(array.T if uses.turned else array, size + table, size)

    def _measured(self, program: Program, context: PassContext) -> Mapping[str, Histogram]:
        """Of what is to get static scales."""
        if self.mode == "dynamic" or context.histograms is None:
            return {}
        graph, names = program.main.graph, []
        if any(node.op_type == "Conv" for node in graph):
            names += to_measure(graph)
        if self.mode == "static":
            names += read_by_products(graph, self.least)
        return context.histograms(program, list(dict.fromkeys(names))) if names else {}

    def _layer(self, value: ir.Value, uses: WeightUses, measured: Mapping[str, Histogram]) -> Layer:
        """How the products with one weight are to be rounded. Raises: NoMatch if they have to stay."""
        name, tensor = str(value.name), constant_tensor(value)
        if any(part in name for part in self.keep):
            decline("is to be kept")
        if not uses.multiplied or tensor is None or tensor.dtype != FLOAT:
            decline("nothing multiplies it in float32")
        readers_reason(uses.multiplied)
        form = self.per if self.mode != "static" else "static"
        scales = tuple(self._scale(node, measured) if form == "static" else None for node in uses.multiplied)
        return Layer(value, tensor, uses, form, scales)

    def _rounded(
        self, layer: Layer, factors: Mapping[str, Array], emitter: Emitter, context: PassContext
    ) -> str:
        """Quantize the products with one weight."""
        tensor, moment = layer.tensor, joined(layer.reads, context.moments)
        wide = factors.get(layer.reads[0])
        if moment is not None and moment().matrix.shape != (layer.columns, layer.columns):
            moment = None
        if wide is not None:
            tensor = _scaled(tensor, wide if not layer.uses.turned else wide[:, None])
        if wide is not None and moment is not None:
            plain = moment()
            shrunk = Moment(plain.matrix / np.outer(wide, wide), plain.rows)
            moment = lambda: shrunk  # noqa: E731
        bits = 7 if self._greatest(context) < 127 else 8
        method = "search" if moment is None and self.method == "gptq" else self.method
        rounding = Rounding(bits, layer.columns, "symmetric", method, sweeps=1, ordered=True)
        weight = rounded_weight(tensor, layer.uses.turned, rounding, moment).weight
        for node, scale in zip(layer.uses.multiplied, layer.scales, strict=True):
            emitter.layer(node, weight, layer.name, layer.form, scale, wide)
        rows, columns = weight.shape
        kinds = {"row": "a scale per row", "tensor": "one scale", "static": f"a scale by {self.range}"}
        how = kinds[layer.form] + ("" if wide is None else ", channels evened out")
        return f"{rows} x {columns} in {bits} bits, activations with {how}"

    def _scale(self, node: ir.Node, measured: Mapping[str, Histogram]) -> Scale:
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        found = measured.get(name)
        if found is None:
            decline(f"{name} was not measured: static scales need calibration data")
        return RangeRule(self.range, self.percentile).scale(found)

    def _greatest(self, context: PassContext) -> int:
        """The greatest code of a weight: one bit less where pairs of products are added up in 16 bits."""
        return 127 if self.bits == 8 or (self.bits == 0 and context.sums_bytes) else 63


@dataclass(frozen=True, slots=True)
class Layer:
    """The products with a weight. ``scales``: static ones of their activations, by product."""

    value: ir.Value
    tensor: ir.TensorProtocol
    uses: WeightUses
    form: str
    scales: tuple[Scale | None, ...]

    @property
    def name(self) -> str:
        """The weight's."""
        return str(self.value.name)

    @property
    def columns(self) -> int:
        """Channels of the activations."""
        return int(self.tensor.shape.numpy()[0 if self.uses.turned else 1])

    @property
    def reads(self) -> list[str]:
        """Names of the activations."""
        values = (node.inputs[0] for node in self.uses.multiplied)
        return list(dict.fromkeys(str(value.name) for value in values if value is not None))


def row_factors_of(layers: Sequence[Layer], moments: Moments | None) -> dict[str, Array]:
    """Factors of the channels of activations that were measured, where they pay, by name."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.reads:
            groups.setdefault(name, []).append(layer)
    found = {}
    for name, group in groups.items():
        several = any(len(layer.reads) > 1 or layer.form == "static" for layer in group)
        x = group[0].uses.multiplied[0].inputs[0]
        if several or moments is None or name not in moments or x is None or zero_point(x) != MIDDLE:
            continue  # behind an activation function a few rows are large, and speak for no other
        channels = moments[name].channels
        if channels.shape != (group[0].columns,):
            continue
        arrays = [layer.tensor.numpy() for layer in group]
        weights = [w.T if layer.uses.turned else w for w, layer in zip(arrays, group, strict=True)]
        factors = row_factors(channels, weights)
        if factors is not None:
            found[name] = factors
    return found


def _scaled(tensor: ir.TensorProtocol, factors: Array) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor((tensor.numpy() * factors).astype(np.float32)),
        dtype=FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def read_by_products(graph: ir.Graph, least: int) -> list[str]:
    """Names of the activations that linear layers read."""
    found = []
    for value in graph.initializers.values():
        try:
            uses = weight_uses(value, least)
        except NoMatch:
            continue
        found += [str(node.inputs[0].name) for node in uses.multiplied if node.inputs[0] is not None]
    return found


def _is_language_model(program: Program) -> bool:
    """Whether an output layer over tokens gives logits."""
    if program.decoding is not None:
        return True
    for value in program.main.graph.initializers.values():
        try:
            uses = weight_uses(value)
        except NoMatch:
            continue
        tensor = constant_tensor(value)
        over_tokens = any(
            x is not None and x.shape is not None and len(x.shape) > 2
            for x in (node.inputs[0] for node in uses.multiplied)
        )
        rows = 0 if tensor is None else tensor.shape.numpy()[1 if uses.turned else 0]
        if uses.head and over_tokens and rows >= _LOGITS:
            return True
    return False
