"""Which backends a compile tries: the one asked for; else all that may be the fastest, and why not others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..compiler.codegen.isa import isa_of
from ..compiler.codegen.native.toolchain import find_toolchain
from ..compiler.codegen.tvm.versions import check_pair
from ..compiler.errors import OptionError, Problem, ToolError
from ..compiler.options import SMALL, BackendName, CompileOptions, parse_sparsity
from ..compiler.parallel.plan import builders
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..passes.base import Pass
from ..passes.pipeline import pipeline
from ..runtime.conditions import cores
from .decision import Outcome
from .estimate import block_sparse, estimate
from .progress import Journal

_SHOWN = 4
"""Kinds of nodes that a note names."""

LEAST_SPARSE = 0.1
"""Share of a program's estimated time in block-sparse products from which on regions of their own may pay."""

_PRODUCTS = frozenset(("MatMul", "Gemm", "Linear"))
_WEIGHING = frozenset(("Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedAttention"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend to try: ``options`` name it. ``passes``: its pipeline."""

    options: CompileOptions
    passes: tuple[Pass, ...]

    @property
    def backend(self) -> str:
        """Its backend's name."""
        return self.options.backend


@dataclass(frozen=True, slots=True)
class Field:
    """``tried``: candidates, the preferred ones first. ``left_out``: backends that are not built, and why."""

    tried: list[Candidate]
    left_out: tuple[Outcome, ...] = ()


def candidates(
    program: Program,
    options: CompileOptions,
    journal: Journal,
    passes: Sequence[Pass] | None = None,
    inputs: Arrays | None = None,
) -> Field:
    """What to try; ``passes`` replaces their pipelines. ``inputs``: of the sizes that will be timed.

    Raises: OptionError if the options fit none of them.
    """
    if options.backend == "tvm":
        check_pair()
    left_out: list[Outcome] = []
    names: list[BackendName] = [options.backend]
    if options.backend == "auto":
        names = ["ort"] if passes is not None else _backends(program, options, journal, inputs, left_out)
    if options.mesh.size > 1:
        able = builders(options.mesh)
        why = f"builds no parts of a program on mesh {options.mesh}"
        left_out += [Outcome(name, "left out", why) for name in names if name not in able]
        names = [name for name in names if name in able]
    found, refusals = [], []
    for name in names:
        try:
            chosen = replace(options, backend=name, tune=options.tune if name == "tvm" else 0)
            steps = tuple(pipeline(chosen) if passes is None else passes)
        except OptionError as error:  # a pass of the other backend was asked for
            refusals.append(error)
            left_out.append(Outcome(name, "left out", str(error).splitlines()[0]))
            continue
        found.append(Candidate(chosen, steps))
    if not found:
        raise refusals[-1]
    return Field(found, tuple(left_out))


def _backends(
    program: Program,
    options: CompileOptions,
    journal: Journal,
    inputs: Arrays | None,
    left_out: list[Outcome],
) -> list[BackendName]:
    """In the order of preference: who comes later has to be faster. Others go into ``left_out``."""
    if options.target.device != "cpu":
        if why := _without_tvm_there(options):
            left_out.append(Outcome("tvm", "left out", why))
        return ["ort"] if why else ["ort", "tvm"]
    found: list[BackendName] = []
    if options.target.arch:
        found.append("native")
    elif not (has_attention(program) or _skips_zeros(program, options)):
        why = "neither attention nor blocks of zeros: its kernels are no faster there"
        left_out.append(Outcome("native", "left out", why))
    else:
        try:
            find_toolchain(isa_of(options.target))
            found.append("native")
        except (ToolError, OptionError) as missing:
            journal.note(f"no native code: {missing}")
            left_out.append(Outcome("native", "left out", str(missing)))
    if not options.target.arch:
        found.append("ort")
    for name, why in _without_tvm(program, options, inputs).items():
        if why:
            left_out.append(Outcome(name, "left out", why))
        else:
            found.append(name)
    return found


def _without_tvm(program: Program, options: CompileOptions, inputs: Arrays | None) -> dict[BackendName, str]:
    """Why TVM's code, of the whole and of regions, is not worth trying; empty where it is."""
    both: tuple[BackendName, ...] = ("tvm", "ort+tvm")
    told = estimate(program, inputs, options.threads or cores(), _asks_for_blocks(options))
    if told is None:
        return dict.fromkeys(both, "its time can't be estimated without sizes")
    regions = ""
    if told.sparse < LEAST_SPARSE:
        regions = "no weights with blocks of zeros, which its kernels skip"
    if options.narrows or options.target.arch:
        regions = "segments are float32, for the CPU that compiles"
    found = dict(zip(both, ("" if told.is_plausible or options.tune else str(told), regions), strict=True))
    if not all(found.values()):
        try:
            check_pair()
        except ToolError as missing:
            return dict.fromkeys(both, str(missing))
    return found


def _without_tvm_there(options: CompileOptions) -> str:
    """Why TVM's code is not worth trying on a GPU; empty where it is: it is built if it can be timed."""
    if options.precision in SMALL:
        return f"its kernels for {options.precision} weights are for CPUs"
    try:
        check_pair()
    except ToolError as missing:
        return str(missing)
    return ""


def _skips_zeros(program: Program, options: CompileOptions) -> bool:
    return _asks_for_blocks(options) or bool(block_sparse(program))


def _asks_for_blocks(options: CompileOptions) -> bool:
    return options.sparsity is not None and "block" in parse_sparsity(options.sparsity)


def has_attention(program: Program) -> bool:
    """Whether it is built like a transformer: products, a softmax over them, and no convolution."""
    kinds = {node.op_type for model in program.entries.values() for node in model.graph}
    return bool(kinds & _PRODUCTS) and bool(kinds & _WEIGHING) and not any("Conv" in kind for kind in kinds)


def summary(problems: Iterable[Problem]) -> str:
    """What can't be run, in a line: kinds of nodes by how many there are, with one name and reason each."""
    found = list(problems)
    reasons = Counter(problem.fact for problem in found)
    first = {problem.fact: problem.place for problem in reversed(found)}
    shown = [
        f"{first[fact]}: {fact}" + (f" ({count}×)" if count > 1 else "")
        for fact, count in reasons.most_common()
    ]
    more = f" and {len(shown) - _SHOWN} more reasons" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more
