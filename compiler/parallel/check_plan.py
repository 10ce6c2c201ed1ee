"""What must hold within a plan, and between a plan, its files and the version that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..artifact import AGAIN, record_file
from ..errors import ArtifactError, Problem
from ..manifest import is_inside
from ..program import TensorSpec
from .plan import OUTSIDE, PLAN, Part, Plan, Share

_MAX_PLAN = 256 << 20


def read_plan(folder: Path, version: str | None = None, *, contents: bool = False) -> Plan:
    """The plan in a variant's folder, its files' sizes compared, their ``contents`` too if asked.

    ``version``: of the worker that reads it; None takes any.
    Raises: ArtifactError naming every file that differs, and a version that does.
    """
    path = folder / PLAN
    try:
        if path.stat().st_size > _MAX_PLAN:
            raise ArtifactError(str(path), f"is larger than {_MAX_PLAN >> 20} MiB", "this is no plan")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ArtifactError(str(path), f"can't be read: {reason}", AGAIN) from error
    plan = Plan.loads(text, str(path))
    if version is not None and plan.version != version:
        fact = f"was written by miaotui {plan.version}, this worker is {version}"
        raise ArtifactError(str(path), fact, "install the same version everywhere, or compile again")
    if found := list(file_problems(plan, folder, contents=contents)):
        raise ArtifactError.of(found)
    return plan


def file_problems(plan: Plan, folder: Path, *, contents: bool = False) -> Iterator[Problem]:
    """Files that are missing or of another size than the plan says; if asked, of other contents."""
    for name, expected in plan.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            yield Problem(str(path), f"can't be read: {error.strerror}", AGAIN)
            continue
        if size != expected.size:
            yield Problem(str(path), f"has {size} bytes, the plan says {expected.size}", AGAIN)
        elif contents and record_file(path) != expected:
            yield Problem(str(path), "its contents differ from what the plan was written for", AGAIN)


def plan_problems(plan: Plan, place: str) -> list[Problem]:
    """What contradicts itself: shares that don't cover the mesh, values that nobody gives, foreign files."""
    wanted = [(stage, shard) for stage in range(plan.mesh.pp) for shard in range(plan.mesh.tp)]
    if [(share.stage, share.shard) for share in plan.shares] != wanted:
        fact = f"its shares are not one for each stage and shard of the mesh {plan.mesh}, in order"
        return [Problem(place, fact, AGAIN)]
    found = [
        Problem(place, f"file {name!r} lies outside the folder", "don't open this folder")
        for name in plan.files
        if not is_inside(name)
    ]
    for share in plan.shares:
        where = f"{place}: stage {share.stage} shard {share.shard}"
        found += [
            Problem(where, f"{name!r} is not among the plan's files", AGAIN)
            for name in share.files
            if name not in plan.files
        ]
        for entry in plan.entries:
            found += _share_problems(plan, share, entry, f"{where}: {entry}")
    for entry, wiring in plan.entries.items():
        found += [
            Problem(f"{place}: {entry}", f"output {fetch.spec.name!r} is given by no stage", AGAIN)
            for fetch in wiring.fetches
            if fetch.stage != OUTSIDE and fetch.spec.name not in _given(plan.share(fetch.stage, 0), entry)
        ]
        found += _meeting_problems(plan, entry, place)
    return found


def _share_problems(plan: Plan, share: Share, entry: str, where: str) -> Iterator[Problem]:
    """Values that a step reads and that nothing gives it."""
    wiring, stage = plan.entries[entry], share.stage
    known: dict[str, TensorSpec | None] = {
        feed.spec.name: feed.spec for feed in wiring.feeds if stage in feed.stages
    }
    known |= {state.input: state.spec for state in share.state.get(entry, ())}
    known |= {wire.spec.name: None for wire in wiring.wires if stage in wire.targets}
    for step in share.steps.get(entry, ()):
        read = step.signature.inputs if isinstance(step, Part) else (step.spec,)
        for spec in read:
            if spec.name not in known:
                yield Problem(where, f"reads {spec.name!r}, which nothing gives it", AGAIN)
            elif (given := known[spec.name]) is not None and given.dtype != spec.dtype:
                yield Problem(where, f"reads {spec}, and gets {given}", AGAIN)
        if isinstance(step, Part):
            known |= {spec.name: spec for spec in step.signature.outputs}
        else:
            known[step.output] = None
    for wire in wiring.wires:
        if wire.source == stage and wire.spec.name not in known:
            yield Problem(where, f"is to send {wire.spec.name!r}, which it does not compute", AGAIN)
        if wire.source == stage and any(target <= stage for target in wire.targets):
            yield Problem(where, f"is to send {wire.spec.name!r} to a stage that is not behind it", AGAIN)


def _given(share: Share, entry: str) -> set[str]:
    steps = share.steps.get(entry, ())
    made = {step.output for step in steps if not isinstance(step, Part)}
    return made | {s.name for step in steps if isinstance(step, Part) for s in step.signature.outputs}


def _meeting_problems(plan: Plan, entry: str, place: str) -> Iterator[Problem]:
    """Shards of a stage whose collectives are not the same in the same order: they would wait for ever."""
    for stage in range(plan.mesh.pp):
        met = {
            tuple(
                (step.name, step.op, step.dim, step.sizes)
                for step in plan.share(stage, shard).steps.get(entry, ())
                if not isinstance(step, Part)
            )
            for shard in range(plan.mesh.tp)
        }
        if len(met) > 1:
            fact = "its shards meet in different collectives, they would wait for each other"
            yield Problem(f"{place}: {entry}: stage {stage}", fact, AGAIN)
