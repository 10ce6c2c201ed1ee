"""Weights that are approximated alike: those that read one input, so that kernels can join them."""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.program import Program
from ..passes.base import NoMatch
from ..passes.weight_uses import WeightUses, weight_uses

LEAST = 4096
"""Elements from which on a weight is worth a choice of its own."""


@dataclass(frozen=True, slots=True)
class Group:
    """Names of weights of ``main`` that get one format: query, key and value; gate and up; or one alone."""

    weights: tuple[str, ...]

    @property
    def name(self) -> str:
        """For tables: the first weight, and how many more there are."""
        first, others = self.weights[0], len(self.weights) - 1
        return f"{first} (+{others})" if others else first


def groups_of(program: Program, least: int = LEAST) -> dict[Group, dict[str, WeightUses]]:
    """Every weight of ``program`` with its uses, by group, in the graph's order."""
    found: dict[str, WeightUses] = {}
    owner: dict[str, str] = {}  # weight or activation → a weight of its group, up to the first one
    for name, value in program.main.graph.initializers.items():
        try:
            uses = weight_uses(value, least)
        except NoMatch:
            continue
        found[str(name)] = uses
        for node in uses.multiplied:
            read = f"read {node.inputs[0].name if node.inputs[0] else ''}"
            first, own = _root(owner, read), _root(owner, str(name))
            owner[own] = first
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(_root(owner, name), []).append(name)
    return {Group(tuple(names)): {name: found[name] for name in names} for names in groups.values()}


def _root(owner: dict[str, str], name: str) -> str:
    while (up := owner.setdefault(name, name)) != name:
        name = up
    return name
