"""The pass interface: a frozen dataclass whose fields are its options, its context, its honest result."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn, TypeAlias, TypeVar, cast

import onnx_ir as ir

from ..compiler.errors import OptionError
from ..compiler.ir.provenance import add_passes
from ..compiler.ir.rewrite import Rewriter
from ..compiler.options import Target
from ..compiler.program import Program
from .histograms import Histogram
from .moments import Moments

Plan: TypeAlias = Mapping[str, Mapping[str, str]]
"""By pass and weight: the options of the pass for that weight, ``bits=8,block=32``, or ``off``."""

OFF = "off"
"""A plan's word for a weight that a pass leaves alone."""

PassT = TypeVar("PassT", bound="Pass")


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did (``hit``) or declined to do at one node, in a sentence; ``facts``: its figures."""

    node: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.node}: {self.text}"


@dataclass(frozen=True, slots=True)
class PassResult:
    """``changed``: number of rewrites; ``hits``: a note each; ``declined``: candidates left, and why.

    ``moments``: of activations that the pass made or cut to fewer channels, by name; the passes behind it
    are given them among the context's.
    """

    changed: int = 0
    hits: tuple[Note, ...] = ()
    declined: tuple[Note, ...] = ()
    moments: Moments = field(default_factory=dict)


@dataclass(slots=True)
class PassContext:
    """What a pass may know from outside: the target, and the backend's word on a node.

    ``supports(node)`` gives None or the reason why the chosen backend can't run the node on the target.
    ``ranges``: measured (least, greatest) of values by name, if the model was calibrated. ``moments``: second
    moments of the activations that linear layers read, by name. ``plan``: what was chosen weight by weight
    under a budget: by pass and name of the weight (as imported) the options that the pass takes there, in the
    spelling of ``with_options``; ``off`` leaves the weight alone. ``speed(pattern, rows, columns, density)``:
    how many times as fast as its dense one the backend's kernel for a sparse weight [rows, columns] is,
    1.0 where it has none; ``density``: share of elements that is kept. ``histograms(program,
    names)``: of activations of the program as it is when a pass asks, by name. ``sums_bytes``: whether the
    target adds products of 8-bit integers up in 32 bits; without VNNI or the like pairs saturate in 16.
    ``reads_halves``: whether its products read weights of 16 bits as they are stored, and don't have them
    made float32 when they are loaded.
    """

    target: Target = field(default_factory=Target)
    supports: Callable[[ir.Node], str | None] = lambda node: None
    ranges: Mapping[str, tuple[float, float]] | None = None
    moments: Moments | None = None
    plan: Plan = field(default_factory=dict)
    speed: Callable[[str, int, int, float], float] = lambda pattern, rows, columns, density: 1.0
    histograms: Callable[[Program, Sequence[str]], Mapping[str, Histogram]] | None = None
    sums_bytes: bool = True
    reads_halves: bool = False

    def chosen(self, step: PassT, weight: str) -> PassT | None:
        """``step`` with the options that the plan has for ``weight``; None if it is to be left alone.

        Factors of a weight (``w.in``, ``w.out``) take what was chosen for it. Without an entry it is ``step``
        itself. Raises: OptionError if the entry does not parse.
        """
        known = self.plan.get(step.name, {})
        text = known.get(weight, known.get(weight.removesuffix(".in").removesuffix(".out")))
        if text is None:
            return step
        return None if text == OFF else cast("PassT", step.with_options(text))


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation of a program, in place.

    ``name`` is its spelling on the command line; ``optional`` says that the program is right without it,
    so that the never-slower check may revert it.
    """

    name: ClassVar[str]
    optional: ClassVar[bool] = True

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> PassResult:
        """Transform ``program`` in place and say what was done."""

    @property
    def summary(self) -> str:
        """First sentence of the class's docstring, for ``miaotui passes``."""
        return (self.__doc__ or "").strip().splitlines()[0]

    def with_options(self, text: str) -> Pass:
        """This pass with fields set from ``a=1,b=x``. Raises: OptionError for an unknown field or value."""
        known = {f.name: f for f in fields(self)}
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, _, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if key not in known:
                offered = f"it has {', '.join(known)}" if known else "it has none"
                raise OptionError(f"pass {self.name}", f"no option {key!r}", offered)
            values[key] = _parse_value(getattr(self, key), value.strip(), f"pass {self.name}: {key}")
        return type(self)(**{**{k: getattr(self, k) for k in known}, **values})


def _parse_value(default: object, text: str, place: str) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(default, (int, float)):
            return type(default)(text)
        if isinstance(default, tuple):
            return tuple(text.split("+"))
    except (KeyError, ValueError):
        raise OptionError(place, f"{text!r} is no {type(default).__name__}") from None
    return text


def parse_pass_spec(text: str) -> tuple[str, str]:
    """``prune-weights{pattern=2:4}`` as name and option text. Raises: OptionError.

    >>> parse_pass_spec("convert-fp16{keep=Softmax}")
    ('convert-fp16', 'keep=Softmax')
    """
    match = re.fullmatch(r"(?P<name>[a-z0-9][a-z0-9-]*)(\{(?P<options>[^{}]*)\})?", text.strip())
    if match is None:
        raise OptionError("--enable/--disable", f"{text!r} is no pass", "write name or name{option=value}")
    return match["name"], match["options"] or ""


class NoMatch(Exception):  # noqa: N818 - control flow of a rewrite, never seen by a user
    """Raised by a rewrite to leave the anchor alone; with a reason if the anchor was a real candidate."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def skip() -> NoReturn:
    """The anchor is no candidate: leave it without a note."""
    raise NoMatch


def decline(reason: str) -> NoReturn:
    """The anchor looked like a candidate, but ``reason`` forbids the rewrite."""
    raise NoMatch(reason)


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass made of local rewrites: ``rewrite`` is tried at every node whose operator is in ``anchors``.

    ``rewrite`` calls ``skip()`` or ``decline(reason)`` to leave a node, else edits through the Rewriter
    and returns the note's text. It must decide before it edits.
    """

    anchors: ClassVar[frozenset[str]]

    @abstractmethod
    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Rewrite around ``node`` and return what was done, or leave by ``skip``/``decline``."""

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try ``rewrite`` once at every anchor of every graph, producers first."""
        hits: list[Note] = []
        declined: list[Note] = []
        for graph in list(program.graphs()):
            for node in tuple(graph):
                if node.op_type not in self.anchors or node.graph is None:
                    continue
                name = node.name or node.op_type
                at = Rewriter(node)
                try:
                    text = self.rewrite(node, at, context)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                hits.append(Note(name, text))
                for made in at.made or (node,):
                    add_passes(made, [self.name])
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


def import_domains(program: Program) -> None:
    """Declare an opset import for every operator domain a model's nodes use."""
    for model in program.entries.values():
        for graph in model.graphs():
            for node in graph:
                model.opset_imports.setdefault(node.domain, 1)


Pipeline = Sequence[Pass]
