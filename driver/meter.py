"""Measures one choice of formats end to end: weights swapped in a session, outputs against the source's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler.closing import Closing
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays
from ..passes.approximation import Approximates
from ..passes.base import OFF, Pass, PassContext
from ..passes.moments import joined
from ..passes.weight_uses import WeightUses
from .formats import INTEGERS, Format, approximating, formats_of, stores_halves
from .groups import Group, groups_of
from .metric import Metric
from .probe import Probe, Swapped

METHOD = 3
"""Version of how errors are measured: another one measures again."""

TOKENS, SAMPLES = 256, 8
"""What one measurement runs, about: tokens of text, or samples of other data."""


@dataclass(frozen=True, slots=True)
class Made:
    """A group's weights in a format, and what they cost; fields as a Row's of ``sensitivity``."""

    swapped: Mapping[str, Swapped]
    local: float
    nbytes: int
    read: int
    elsewhere: int = 0


class Meter(Closing):
    """The program as the first approximating pass sees it, under another choice of its weights each time.

    ``passes``: of the pipeline; those that approximate weights take part, as they were set. ``context``: as
    it reaches them. ``samples``: calibration data, of which the first are used. The session is opened when
    first needed and closed with the Meter.
    """

    def __init__(
        self,
        program: Program,
        passes: Sequence[Pass],
        context: PassContext,
        samples: Sequence[Arrays],
        metric: Metric,
        precision: str,
        threads: int | None = None,
    ) -> None:
        self.program, self.context, self.metric, self.threads = program, context, metric, threads
        replacing = approximating(passes)
        if metric.vocabulary is not None:  # whose weights that pass leaves to blocks
            replacing = [step for step in replacing if step.name != INTEGERS]
        self.passes = replacing
        self.samples = _first(samples, metric)
        self.groups = groups_of(program)
        self.formats = formats_of(self.passes, precision, stores_halves(passes))
        self.runs = 0
        """Measurements so far, the source's own not counted."""
        self._opened = ExitStack()
        self._probe: Probe | None = None
        self._expected: list[Arrays] = []

    def key(self) -> str:
        """Hash of all that errors depend on."""
        content = hashlib.sha256()
        speed = [
            self.context.speed(pattern, 1024, 1024, 0.25) for pattern in ("block", "2:4", "unstructured")
        ]
        known = (METHOD, self.metric, bool(self.context.moments), speed, list(map(repr, self.passes)))
        content.update(repr((*known, "reads halves") if self.context.reads_halves else known).encode())
        for arrays in self.samples:
            for name in sorted(arrays):
                content.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
                content.update(np.ascontiguousarray(arrays[name]).tobytes())
        for node in self.program.main.graph:
            read = [None if value is None else value.name for value in node.inputs]
            content.update(
                repr((node.domain, node.op_type, read, sorted(map(str, node.attributes)))).encode()
            )
        for name, value in self.program.main.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                content.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                content.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
        return content.hexdigest()

    def made(self, group: Group, chosen: Format) -> Made | None:
        """The group in a format; None if it is not offered there, or the same as a finer one."""
        swapped: dict[str, Swapped] = {}
        local, nbytes, read, elsewhere = 0.0, 0, 0, 0
        for name, uses in self.groups[group].items():
            found = self._weight(name, uses, chosen)
            if found is None:
                return None
            swapped[name] = found[0]
            local += found[1]
            nbytes += found[2]
            read += found[3]
            elsewhere += found[4]
        return Made(swapped, local, nbytes, read, elsewhere)

    def error(self, swapped: Mapping[str, Swapped]) -> float:
        """The additive error with these weights swapped, all others as they are."""
        expected, probe = self._source()
        self.runs += 1
        return self.metric.distance([probe.run(arrays, swapped) for arrays in self.samples], expected)

    def error_of(self, run: Callable[[Arrays], Arrays]) -> float:
        """The additive error of another build of the program."""
        expected, _ = self._source()
        return self.metric.distance([run(arrays) for arrays in self.samples], expected)

    def run(self, arrays: Arrays, swapped: Mapping[str, Swapped] | None = None) -> Arrays:
        """Outputs on other inputs, with some weights swapped."""
        return self._source()[1].run(arrays, swapped)

    def _source(self) -> tuple[list[Arrays], Probe]:
        if self._probe is None:
            names = [name for group in self.groups for name in group.weights]
            switches = any(step.name == INTEGERS for step in self.passes)
            self._probe = self._opened.enter_context(
                Probe(self.program, names, threads=self.threads, switches=switches)
            )
            self._expected = [self._probe.run(arrays) for arrays in self.samples]
        return self._expected, self._probe

    def _weight(
        self, name: str, uses: WeightUses, chosen: Format
    ) -> tuple[Swapped, float, int, int, int] | None:
        """What stands for the weight, its local error, bytes stored, read, and those of other weights."""
        value = self.program.main.graph.initializers[name]
        source = value.const_value
        if source is None or (chosen.tables and not uses.look_ups):
            return None
        if chosen.splits_tables and not uses.products:
            return None
        tensor: ir.TensorProtocol = source
        nbytes, read = source.nbytes, source.nbytes if uses.products else 0
        kept, elsewhere = 1.0, 0
        on = [(step, text) for step in self.passes if (text := dict(chosen.options)[step.name]) != OFF]
        for step, text in on:
            changed = step.with_options(text)
            assert isinstance(changed, Approximates)
            found = changed.approximation(name, tensor, uses, self.context)
            if found is None:
                return None
            rounded = step.name.startswith("quantize")  # and so are those that make what it reads
            smaller = found.nbytes / tensor.nbytes if rounded else 1.0
            nbytes, read = round(kept * found.nbytes), round(kept * found.read)
            kept, elsewhere = kept * found.kept, round(elsewhere * smaller) + found.elsewhere
            tensor = ir.Tensor(np.ascontiguousarray(found.array, np.float32), name=name)
        if not on:
            return Swapped(), 0.0, nbytes, read, 0
        array = tensor.numpy()
        local = self._local(np.asarray(array - source.numpy(), np.float32), uses)
        alone = not uses.products or nbytes == read  # look-ups read the same bytes
        swapped = Swapped(array, array if alone else None, chosen.rounds_activations)
        return swapped, local, nbytes, read, elsewhere

    def _local(self, change: Array, uses: WeightUses) -> float:
        """Squared error of the products' outputs; without measured activations, of the weight."""
        names = [str(node.inputs[0].name) for node in uses.multiplied if node.inputs[0] is not None]
        moment = joined(names, self.context.moments)
        found = None if moment is None else moment()
        columns = change.T if uses.turned else change
        if found is None or found.matrix.shape[0] != columns.shape[1]:
            return float(np.einsum("ij,ij->", change, change, dtype=np.float64))
        return found.error(columns)

    def close(self) -> None:
        """Free the session."""
        self._opened.close()
        self._probe = None


def _first(samples: Sequence[Arrays], metric: Metric) -> list[Arrays]:
    """Samples up to ``TOKENS`` tokens, or ``SAMPLES``, evenly spread over all."""
    if metric.vocabulary is None or not samples:
        count = min(SAMPLES, len(samples))
    else:
        tokens = max(array.size for array in samples[0].values() if array.dtype.kind in "iu")
        count = min(len(samples), max(1, TOKENS // tokens))
    return [samples[index * len(samples) // count] for index in range(count)]
