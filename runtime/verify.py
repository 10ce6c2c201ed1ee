"""Verification: an executable's outputs and layers against a reference's, as a table that says ok or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..compiler.artifact import Artifact
from ..compiler.jsonable import to_json
from ..compiler.manifest import Certificate
from ..compiler.reference import Array, Arrays, Reference
from .compare import Difference, Limit, differences
from .layers import LayerDifference, compare_layers, first_excess, surviving
from .session import model_of


@dataclass(frozen=True, slots=True)
class Verification:
    """Outputs, and layers where the reference has them, of ``variant`` against ``reference``.

    ``note``: why no layers were compared though they were asked for.
    """

    reference: str
    variant: str
    tolerance: float
    outputs: tuple[Difference, ...]
    layers: tuple[LayerDifference, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance; layers inform, they don't decide."""
        return all(output.ok for output in self.outputs)

    @property
    def error(self) -> float:
        """The greatest scaled error of any output."""
        return max((output.scaled for output in self.outputs), default=0.0)

    @property
    def first_excess(self) -> LayerDifference | None:
        """The first layer in execution order that exceeds the tolerance."""
        return first_excess(self.layers)

    def certificate(self) -> Certificate:
        """The short form that a manifest keeps."""
        errors = {output.name: output.scaled for output in self.outputs}
        return Certificate(self.reference, self.ok, self.tolerance, errors, self.variant)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``, with every row's verdict."""
        data: dict[str, Any] = to_json(self)
        data["ok"] = self.ok
        for row, output in zip(data["outputs"], self.outputs, strict=True):
            row["ok"] = output.ok
        for row, layer in zip(data["layers"], self.layers, strict=True):
            row["ok"] = layer.ok
        return data


class GoldenReference:
    """The source framework's outputs as they were kept in the folder; right for the kept inputs only."""

    __slots__ = ("_outputs", "name")

    def __init__(self, outputs: Arrays, name: str) -> None:
        self._outputs = outputs
        self.name = name

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """The kept outputs."""
        return self._outputs

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """None were kept."""
        return {}


def layer_values(artifact: Artifact, variant: str | None) -> dict[str, str]:
    """Layer path → value name of the layers that ``variant`` still computes, in execution order."""
    return surviving(artifact.manifest.layers, model_of(artifact, variant).computed())


def verification(
    reference: Reference,
    variant: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
    *,
    limit: Limit,
    layers: Mapping[str, str],
) -> Verification:
    """Compare ``outputs``, which may hold inner values too, with the reference's for ``inputs``.

    Only tensors computed in floats have a tolerance; integers, booleans and text must be equal.
    """
    expected = reference.run(inputs)
    rows = compare_layers(layers, outputs, reference.layers(inputs) if layers else {}, limit.scaled)
    return Verification(reference.name, variant, limit.figure, differences(outputs, expected, limit), rows)
