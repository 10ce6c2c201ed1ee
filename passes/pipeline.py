"""The order of passes per target and optimization level, as data; enabling and disabling by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from ..compiler.errors import OptionError, Problem
from ..compiler.options import CompileOptions, parse_sparsity
from .base import Pass, Pipeline, parse_pass_spec
from .cleanup import CLEANUP
from .fusion import FUSION
from .incremental import INCREMENTAL
from .lowering.native import LOWER_NATIVE, NATIVE_BF16, NATIVE_FP16
from .lowering.onnxruntime import LOWER_CPU, LOWER_CUDA, TRY_CUDA, UseGroupQueryAttention
from .lowering.tvm import LOWER_TVM
from .lowrank import LOWRANK
from .precision import BF16, INTEGERS, PRECISION, STORED, WEIGHTS
from .raising import RAISING
from .sparsity import SPARSITY

LOWERING: dict[str, Pipeline] = {
    "cpu": LOWER_CPU,
    "cuda": LOWER_CUDA,
    "native": LOWER_NATIVE,
    "tvm": LOWER_TVM,
    "ort+tvm": (),
}
"""Last stage, by device, or by backend where that has its own: into the operators it runs best. Where two
take turns, each segment is lowered once it is cut."""


TRIED: dict[str, Pipeline] = {"cuda": TRY_CUDA}
"""By the lowering's key: passes behind it that pay on some machines and programs, and cost on others."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the order: on by default or not; if ``required``, its non-optional passes always run."""

    passes: Pipeline
    on: bool
    required: bool = False

    def runs(self, step: Pass) -> bool:
        """Whether ``step`` runs unless the user says otherwise."""
        return self.on or (self.required and not step.optional)


def stages(options: CompileOptions) -> tuple[Stage, ...]:
    """The order, and what is on at the optimization level and precision that were asked for."""
    level, native = options.opt, options.backend == "native"
    lowering = LOWERING.get(options.backend, LOWERING[options.target.device])
    cuda = options.target.device == "cuda"
    if cuda and options.mesh.size > 1:  # ranks give all rows of a prompt to one run
        lowering = tuple(step for step in lowering if step.name != UseGroupQueryAttention.name)
    blocks = options.backend in ("native", "tvm") or options.precision == "int4" or cuda
    weights = WEIGHTS.get(options.precision, WEIGHTS["int8"]) if blocks else INTEGERS
    bf16 = options.precision == "bf16"
    narrow = STORED.get(options.precision, STORED["fp16"])
    if native:
        narrow = NATIVE_BF16 if bf16 else NATIVE_FP16
    return (
        Stage(CLEANUP, on=level >= 1),
        Stage(RAISING, on=level >= 2),
        Stage(CLEANUP, on=level >= 2),
        Stage(SPARSITY, on=False),
        Stage(LOWRANK, on=False),
        Stage(weights, on=options.precision in WEIGHTS),
        Stage(INCREMENTAL, on=level >= 1),
        Stage(FUSION, on=level >= 2),
        Stage(BF16 if bf16 else PRECISION, on=options.narrows and cuda),
        Stage(lowering, on=level >= 2, required=True),
        Stage(_tried(options), on=False),
        Stage(narrow, on=options.narrows and not cuda),
        Stage(CLEANUP, on=level >= 2),
    )


def _tried(options: CompileOptions) -> Pipeline:
    key = options.backend if options.backend in LOWERING else options.target.device
    return TRIED.get(key, ()) if options.opt >= 2 else ()


def offered(options: CompileOptions) -> Pipeline:
    """Passes that are worth a try where they can be timed; not those that the user has decided on."""
    named = {parse_pass_spec(spec)[0] for spec in (*options.enable, *options.disable)}
    return tuple(step for step in _tried(options) if step.name not in named)


def asked(options: CompileOptions) -> tuple[str, ...]:
    """The passes that --sparsity, --rank, --tune and --cache stand for, as ``--enable`` would spell them."""
    found = []
    for pattern, share in parse_sparsity(options.sparsity).items() if options.sparsity else ():
        if pattern in ("heads", "channels"):
            found.append(f"prune-{pattern}{{share={share}}}")
            if pattern == "channels" and options.budget is None:  # heads can't be weighed layer by layer
                apart = options.backend == "native"  # its attention takes keys and values of different widths
                found.append(f"narrow-heads{{share={share},values_alone={apart}}}")
        else:
            kind = f"pattern={pattern},sparsity={share},precision={options.precision}"
            found.append(f"prune-weights{{{kind}}}")
    if options.rank is not None:
        bits = {"int8": 8, "int4": 4}.get(options.precision, 32)
        found.append(f"factor-weights{{rank={options.rank},bits={bits}}}")
    if options.tune and options.backend == "tvm":
        found.append(f"tune-kernels{{trials={options.tune}}}")
    if options.cache != "auto" and options.backend == "native":
        found.append(f"native-cache{{dtype={options.cache}}}")
    return tuple(found)


def pipeline(options: CompileOptions) -> list[Pass]:
    """The passes to run, in order, with the user's options set and what they disabled left out.

    ``--enable name`` also turns on a pass that the level leaves out, at its place in the order.
    Raises: OptionError for every spec that does not parse, names no pass, sets an unknown option,
    contradicts another or can't be followed on the target.
    """
    if options.backend == "ort" and options.cache in ("fp16", "int8"):
        fact = "ONNX Runtime's attention takes an int8 cache only with scales that are fixed in advance"
        if options.cache == "fp16":
            fact = "ONNX Runtime's attention would cast a fp16 cache to fp32 and back for every token"
        raise OptionError("--cache", fact, "use --backend native, or --cache fp32")
    order = stages(options)
    options = replace(options, enable=(*asked(options), *options.enable))
    enabled, disabled = _selection(options, {step.name: step for stage in order for step in stage.passes})
    return [
        enabled.get(step.name, step)
        for stage in order
        for step in stage.passes
        if step.name not in disabled and (step.name in enabled or stage.runs(step))
    ]


def all_passes() -> dict[str, Pass]:
    """Every pass by name, with default options, in pipeline order."""
    weights = (SPARSITY, LOWRANK, INTEGERS, *WEIGHTS.values())
    halves = (PRECISION, BF16, *LOWERING.values(), *STORED.values())
    rooms = (CLEANUP, RAISING, *weights, INCREMENTAL, FUSION, *halves, *TRIED.values())
    found: dict[str, Pass] = {}
    for step in (step for room in rooms for step in room):
        found.setdefault(step.name, step)
    return found


def _selection(options: CompileOptions, offered: dict[str, Pass]) -> tuple[dict[str, Pass], set[str]]:
    problems: list[Problem] = []
    enabled: dict[str, Pass] = {}
    disabled: set[str] = set()
    for flag, specs in (("--enable", options.enable), ("--disable", options.disable)):
        for spec in specs:
            try:
                step, text = _named(spec, flag)
                if flag == "--enable":
                    if step.name not in offered:
                        raise OptionError(flag, f"pass {step.name} is not for --target {options.target}")
                    enabled[step.name] = enabled.get(step.name, offered[step.name]).with_options(text)
                    continue
                if text:
                    raise OptionError(
                        flag, f"{spec!r} sets options of a pass that is left out", f"write {step.name}"
                    )
                if not step.optional:
                    raise OptionError(flag, f"{step.name} is needed for a right result, it can't be left out")
                disabled.add(step.name)
            except OptionError as error:
                problems.extend(error.problems)
    problems.extend(
        Problem(f"pass {name}", "is both enabled and disabled", "drop one of the two")
        for name in enabled
        if name in disabled
    )
    if problems:
        raise OptionError.of(problems)
    return enabled, disabled


def _named(spec: str, flag: str) -> tuple[Pass, str]:
    name, text = parse_pass_spec(spec)
    known = all_passes()
    if name in known:
        return known[name], text
    near = get_close_matches(name, known, n=3)
    raise OptionError(
        flag, f"no pass {name!r}", f"did you mean {' or '.join(near)}?" if near else "see miaotui passes"
    )
