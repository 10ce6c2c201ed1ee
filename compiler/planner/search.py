"""The search: every mesh and micro-batch that fits, ranked by a goal; and what to do when none fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..errors import CompileError, OptionError, Problem
from ..parallel.mesh import Mesh
from .catalogue import GIB, Accelerator
from .constants import Constants, fitted
from .forecast import Forecast, forecast
from .layout import check, meshes, told
from .load import Load
from .memory import memory_of
from .network import Network
from .precision import BITS, STORED
from .steady import sequences_of
from .step import Cost

Goal: TypeAlias = Literal["latency", "throughput", "cost"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "cost")

LARGEST = 4096
"""Devices up to which a mesh is looked for that fits."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. ``price``: of a device's hour, in dollars; by default the description's.

    ``slowest_first``, ``slowest_next``: seconds that the first token and each further one may take.
    ``mesh``: sizes that are given, by axis.
    """

    load: Load
    goal: Goal = "throughput"
    precision: str = "fp16"
    cache: str = "fp16"
    stack: str | None = None
    price: float | None = None
    slowest_first: float = math.inf
    slowest_next: float = math.inf
    dp: int | None = None
    pp: int | None = None
    tp: int | None = None

    def allows(self, mesh: Mesh) -> bool:
        """Whether the mesh has the sizes that are given."""
        given = ((self.dp, mesh.dp), (self.pp, mesh.pp), (self.tp, mesh.tp))
        return all(asked is None or asked == has for asked, has in given)

    def score(self, found: Forecast) -> tuple[float, ...]:
        """Smaller is better; among equals the mesh of fewer devices."""
        seconds, rate = found.latency(self.load.output), found.rate
        best: dict[Goal, float] = {
            "latency": seconds,
            "throughput": -rate,
            "cost": found.mesh.size / rate,
        }
        return (best[self.goal], found.mesh.size, found.mesh.pp, seconds)

    def meets(self, found: Forecast) -> bool:
        """Whether the first token and the next ones come in time."""
        return found.ttft <= self.slowest_first and found.tpot <= self.slowest_next


@dataclass(frozen=True, slots=True)
class Planned:
    """The best forecast of each mesh, best first; ``meshes``: how many there are, ``fitting``: that fit."""

    network: Network
    device: Accelerator
    devices: int
    wish: Wish
    constants: Constants
    forecasts: tuple[Forecast, ...]
    meshes: int
    fitting: int

    @property
    def best(self) -> Forecast:
        """The winner."""
        return self.forecasts[0]

    def cost(self, mesh: Mesh) -> Cost:
        """The cost model of a mesh."""
        return _cost(self.network, self.device, mesh, self.wish, self.constants)


def plan(
    network: Network, devices: int, device: Accelerator, wish: Wish, constants: Constants | None = None
) -> Planned:
    """Rank all meshes of at most ``devices``.

    Raises: OptionError for a mesh that can't be, for a network that no mesh has the memory for, for limits
    that none meets, for a goal without what it needs; each with the nearest that can.
    """
    constants = (fitted() if constants is None else constants).on(device)
    price = device.price if wish.price is None else wish.price
    if wish.goal == "cost" and price is None:
        raise OptionError("--goal cost", "needs a price", "give --price, dollars of a device's hour")
    wish = replace(wish, price=price)
    if network.context is not None and wish.load.length > network.context:
        tokens = f"{wish.load.prompt} tokens, and {wish.load.output} written"
        fact = f"{tokens}, pass {network.name}'s {network.context}"
        raise OptionError("--prompt", fact, "give less, or a smaller --output")
    at_once = wish.load.concurrency
    if at_once is not None and wish.dp is not None and wish.dp > at_once:
        fact = f"{at_once} requests at a time keep no more than {at_once} replicas busy"
        raise OptionError(f"--dp {wish.dp}", fact, f"give at most {at_once}, or --concurrency {wish.dp}")
    check(network, Mesh(wish.dp or 1, wish.pp or 1, wish.tp or 1), devices)
    tried = [mesh for mesh in meshes(network, devices, _replicas(wish)) if wish.allows(mesh)]
    found: list[Forecast] = []
    fitting = 0
    for mesh in tried:
        every = list(_forecasts(_cost(network, device, mesh, wish, constants), wish))
        fitting += bool(every)
        found += sorted(filter(wish.meets, every), key=wish.score)[:1]
    if not fitting:
        raise _refusal(network, devices, device, wish, constants)
    if not found:
        raise _too_slow(network, devices, device, wish, constants, tried)
    found.sort(key=wish.score)
    return Planned(network, device, devices, wish, constants, tuple(found), len(tried), fitting)


def _replicas(wish: Wish) -> int | None:
    """The most replicas that have something to do; as many as are given, if some are."""
    return wish.load.concurrency if wish.dp is None else wish.dp


def _cost(network: Network, device: Accelerator, mesh: Mesh, wish: Wish, constants: Constants) -> Cost:
    stack = constants.stack(wish.stack, device)
    return Cost(network, device, mesh, wish.precision, wish.cache, constants, stack)


def _forecasts(cost: Cost, wish: Wish) -> Iterator[Forecast]:
    """Forecasts of a mesh with one, two or four micro-batches a stage.

    Sequences under way are as many as asked or as fit; where tokens have to come in time, also fewer.
    """
    for load in _loads(cost, wish):
        held = sequences_of(cost, load, memory_of(cost, load))
        for count in sorted({min(cost.mesh.pp * times, held) for times in (1, 2, 4)} - {0}):
            made = forecast(cost, load, held / count, wish.price)
            if made is not None:
                yield made


def _loads(cost: Cost, wish: Wish) -> Iterator[Load]:
    load = wish.load
    yield load
    if wish.slowest_first < math.inf or wish.slowest_next < math.inf:
        held = sequences_of(cost, load, memory_of(cost, load))
        for power in range(max(held, 1).bit_length()):
            yield replace(load, concurrency=2**power * cost.mesh.dp)


def _needed(network: Network, device: Accelerator, wish: Wish, constants: Constants) -> Mesh | None:
    """The smallest mesh that fits: first the one of fewest devices, then of fewest stages."""
    size = 1
    while size <= LARGEST:
        one = (mesh for mesh in meshes(network, size, replicas=1) if mesh.size > size // 2)
        fitting = [
            mesh
            for mesh in one
            if replace(wish, dp=None).allows(mesh)
            and _fits(_cost(network, device, mesh, wish, constants), wish.load)
        ]
        if fitting:
            return min(fitting, key=lambda mesh: (mesh.size, mesh.pp))
        size *= 2
    return None


def _fits(cost: Cost, load: Load) -> bool:
    return memory_of(cost, load).fits


def _refusal(
    network: Network, devices: int, device: Accelerator, wish: Wish, constants: Constants
) -> OptionError:
    """The error for a network that no mesh holds: what would."""
    mesh = Mesh(1, wish.pp or 1, wish.tp or 1)
    weights = network.parameters * _cost(network, device, mesh, wish, constants).weight_bytes / GIB
    fact = f"{network.name} has {weights:.1f} GiB of weights in {wish.precision}"
    fact += f", a {device.name} has {device.memory / GIB:.1f} GiB"
    fixes = []
    larger = _needed(network, device, wish, constants)
    if larger is not None:
        fixes.append(f"give {larger.size}x{device.name} ({told(larger)})")
    narrower = _narrower(network, devices, device, wish, constants)
    if narrower is not None:
        fixes.append(f"--precision {narrower[0]} ({told(narrower[1])})")
    if wish.dp or wish.pp or wish.tp:
        free = replace(wish, dp=None, pp=None, tp=None)
        other = _needed(network, device, free, constants)
        if other is not None and other.size <= devices:
            fixes.insert(0, f"leave the mesh to the planner ({told(other)} fits)")
    fix = ", or ".join(fixes) or f"no mesh of up to {LARGEST} fits: shorten --prompt and --output"
    return OptionError(f"--devices {devices}x{device.name}", fact + ": no mesh fits", fix)


def _narrower(
    network: Network, devices: int, device: Accelerator, wish: Wish, constants: Constants
) -> tuple[str, Mesh] | None:
    """The widest precision in which a mesh of ``devices`` fits, and that mesh."""
    now = 16.0 if wish.precision == STORED else BITS.get(wish.precision, 16.0)
    for precision in ("fp8", "int4"):
        if BITS[precision] < now:
            smaller = replace(wish, precision=precision)
            mesh = _needed(network, device, smaller, constants)
            if mesh is not None and mesh.size <= devices:
                return precision, mesh
    return None


def _too_slow(
    network: Network,
    devices: int,
    device: Accelerator,
    wish: Wish,
    constants: Constants,
    tried: list[Mesh],
) -> CompileError:
    """The error for limits that no mesh meets: how near they come."""
    every = [
        found for mesh in tried for found in _forecasts(_cost(network, device, mesh, wish, constants), wish)
    ]
    problems = []
    for flag, limit, values in (
        ("--max-ttft", wish.slowest_first, [found.ttft for found in every]),
        ("--max-tpot", wish.slowest_next, [found.tpot for found in every]),
    ):
        if limit < math.inf:
            fact = f"{limit * 1e3:.3g} ms: the best of {len(tried)} meshes takes {min(values) * 1e3:.3g} ms"
            if min(values) <= limit:
                fact = f"{limit * 1e3:.3g} ms: no mesh meets it together with the other limit"
            problems.append(Problem(flag, fact, "allow more, or give more or faster devices"))
    return OptionError.of(problems)
