"""plan.json: a partitioned program as its workers read it. Mesh, stages, files, wires, collectives, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..errors import ArtifactError
from ..jsonable import from_json, to_json
from ..manifest import Entry, FileRecord, parse_signed, signed
from ..program import TensorSpec
from .mesh import Mesh, MeshAxis

PLAN = "plan.json"
"""Its name in the variant's folder; all files that it names are relative to that folder."""

FORMAT = "miaotui plan"
SCHEMA = 1

BACKENDS = ("ort", "native")
"""Whose code parts may be."""


def builders(mesh: Mesh) -> tuple[str, ...]:
    """Whose code its parts may be: native code has a layer's products fused before ranks could share them.

    >>> builders(Mesh(pp=2)), builders(Mesh(tp=2))
    (('ort', 'native'), ('ort',))
    """
    return BACKENDS if mesh.tp == 1 else BACKENDS[:1]


OUTSIDE = -1
"""The stage of what the caller gives."""


@dataclass(frozen=True, slots=True)
class Part:
    """A program that a rank runs between two collectives: an entry of a model file.

    ``entry``: its name in ``file``. ``signature``: what it reads of what the rank holds and what it gives, by
    the names that values have in the whole program, with the shapes that this rank has. ``settings``: as a
    variant's.
    """

    backend: str
    entry: str
    file: str
    signature: Entry
    settings: Mapping[str, str] = field(default_factory=dict)


CollectiveOp: TypeAlias = Literal["AllReduce", "AllGather", "ReduceScatter"]


@dataclass(frozen=True, slots=True)
class Collective:
    """Where the ranks of a group along a mesh axis meet: each gives ``input`` and gets ``output``.

    AllReduce sums over the group. AllGather joins along ``dim``, by rank; ReduceScatter sums and leaves each
    rank its share along ``dim``. ``sizes``: of the shares along ``dim``, by place in the group; empty for
    AllReduce. ``spec``: of what this rank gives, under the name of ``input``. ``bytes``: of that, at the
    sizes of the plan's estimate. ``name``: unique in the entry, the same at all ranks of the group.
    """

    name: str
    op: CollectiveOp
    axis: MeshAxis
    input: str
    output: str
    spec: TensorSpec
    dim: int = 0
    sizes: tuple[int, ...] = ()
    bytes: int = 0


Step: TypeAlias = Part | Collective


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that a rank keeps between runs of an entry: what ``output`` held after one is ``input`` next.

    ``spec``: of the input as this rank holds it, [batch, its heads, capacity, width].
    """

    input: str
    output: str
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Share:
    """What the ranks at a stage and a tensor shard run: replicas run the same files.

    ``steps``: of each entry, in order. ``state``: of each entry. ``weights``: file of its tensors, which no
    other share reads; None if it has none. ``memory``: bytes of its weights.
    """

    stage: int
    shard: int
    steps: Mapping[str, tuple[Step, ...]]
    state: Mapping[str, tuple[State, ...]] = field(default_factory=dict)
    weights: str | None = None
    memory: int = 0

    @property
    def files(self) -> list[str]:
        """Its model files and its weights, each once."""
        models = [step.file for steps in self.steps.values() for step in steps if isinstance(step, Part)]
        return list(dict.fromkeys([*models, *([] if self.weights is None else [self.weights])]))


@dataclass(frozen=True, slots=True)
class Feed:
    """An input of an entry: which stages read it, all shards of them.

    ``batch``: the axis that is split among replicas and micro-batches; None: each gets all of it. State
    inputs are no feeds: they stay where they are.
    """

    spec: TensorSpec
    stages: tuple[int, ...]
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """An output of an entry: the stage that gives it, whole at each of its shards.

    ``batch``: the axis along which replicas' and micro-batches' are joined, in their order; None: each gives
    the same. ``stage`` is ``OUTSIDE`` where the output is an input of the same name.
    """

    spec: TensorSpec
    stage: int
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """A value that a stage computes and later ones read: shard t sends to shard t of each target.

    ``spec``: as shard 0 holds it. ``sharded``: the axis along which shards hold different parts; None: all
    hold the same. ``bytes``: that one shard sends to one target, at the sizes of the plan's estimate.
    """

    spec: TensorSpec
    source: int
    targets: tuple[int, ...]
    bytes: int = 0
    sharded: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """How an entry runs over the stages: what goes in, along, and out."""

    feeds: tuple[Feed, ...]
    fetches: tuple[Fetch, ...]
    wires: tuple[Wire, ...] = ()


@dataclass(frozen=True, slots=True)
class StageCost:
    """Modelled cost of a stage for one run: seconds of computing, of collectives, of receiving; bytes."""

    seconds: float
    collectives: float
    receiving: float
    memory: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of one run of ``entry`` at ``sizes`` on a device: what cuts were chosen by.

    ``balance``: mean over greatest time of the stages, 1.0 at best.
    """

    entry: str
    device: str
    sizes: Mapping[str, int]
    stages: tuple[StageCost, ...]
    balance: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A partitioned program on disk.

    ``version``: of miaotui that wrote it; workers of another refuse it. ``shares``: by stage, then by shard.
    ``entries``: as the program's. ``files``: size and SHA-256 of every file that shares name.
    """

    version: str
    mesh: Mesh
    entries: Mapping[str, EntryPlan]
    shares: tuple[Share, ...]
    estimates: tuple[Estimate, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def share(self, stage: int, shard: int) -> Share:
        """The share of a stage's tensor shard."""
        return self.shares[stage * self.mesh.tp + shard]

    def share_of(self, rank: int) -> Share:
        """The share that a rank runs."""
        at = self.mesh.coordinate(rank)
        return self.share(at.pp, at.tp)

    def dumps(self) -> str:
        """The plan as text, its own hash last."""
        data = signed({"format": FORMAT, "schema": SCHEMA, **to_json(self)})
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str, place: str) -> Plan:
        """The plan in ``text``; ``place`` begins every message.

        Raises: ArtifactError if it is not ours, of another schema, edited, or contradicts itself.
        """
        from .check_plan import plan_problems

        data = parse_signed(text, place, FORMAT, SCHEMA, "the plan of a partitioned program")
        plan = from_json(cls, data, place)
        if found := plan_problems(plan, place):
            raise ArtifactError.of(found)
        return plan
