"""A jinja2 environment for templates nobody has checked: no way out, bounded steps, sizes and time.

Every loop turn and call is counted, and every value that a template makes is weighed when it is made, so no
operation meets an operand beyond ``SIZE``; operations whose result can be larger are checked before.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from time import monotonic
from typing import Any, cast

from jinja2 import Template, Undefined, ext, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEPS = 1_000_000
"""Loop turns and calls of one rendering."""

SIZE = 16 << 20
"""Characters of a text; an item of a list or mapping counts as 16."""

SECONDS = 10.0
"""Time of one rendering."""

NUMBER = 1_000_000
"""Greatest integer a function may be given."""

METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"
})  # fmt: skip
"""Methods of text that templates may use: those whose result's size is known beforehand."""

FILTERS = frozenset({
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "tojson", "trim", "truncate",
    "unique", "upper", "wordcount"
})  # fmt: skip
"""Filters that templates may use."""


class ExceededError(Exception):
    """A template does not stay within its bounds."""


class RefusedError(TemplateError):
    """The template called ``raise_exception``: the messages are not what it takes."""


class Budget:
    """What is left of one rendering's steps and time."""

    __slots__ = ("_deadline", "_steps")

    def __init__(self) -> None:
        self._steps, self._deadline = STEPS, monotonic() + SECONDS

    def step(self) -> None:
        """Count a loop turn or a call."""
        self._steps -= 1
        if self._steps < 0:
            raise ExceededError(f"takes more than {STEPS:,} steps")
        if monotonic() > self._deadline:
            raise ExceededError(f"takes more than {SECONDS:g} s")


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """The text of ``template``. Raises: ExceededError, RefusedError, and what its operations raise."""
    token = BUDGET.set(Budget())
    try:
        return template.render(bounded(dict(variables)))
    finally:
        BUDGET.reset(token)


def bounded(value: Any) -> Any:
    """``value``, weighed. Raises: ExceededError."""
    if isinstance(value, Iterator):  # what the filters map, select, … give; still true when empty
        return iter(list(_weighed(value)))
    for _ in _weighed([value]):
        pass
    return value


def _weighed(values: Iterable[Any]) -> Iterator[Any]:
    """``values`` one by one, as long as they weigh no more than SIZE together."""
    left = SIZE
    for value in values:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | bytes):
                left -= len(item)
            elif isinstance(item, Mapping):
                left -= 32 * len(item)
                stack += [*item.keys(), *item.values()] if left >= 0 else []
            elif isinstance(item, list | tuple | set | frozenset):
                left -= 16 * len(item)
                stack += item if left >= 0 else ()
            elif isinstance(item, int) and item.bit_length() > 10_000:
                raise ExceededError("makes a number of more than 10,000 bits")
            if left < 0:
                raise ExceededError(f"makes a value of more than {SIZE:,} characters")
        left -= 16
        yield value


def _check_product(*factors: int) -> None:
    product = 1
    for factor in factors:
        product *= max(factor, 1)
    if product > SIZE:
        raise ExceededError(f"makes a value of more than {SIZE:,} characters")


def _check_arguments(args: Iterable[Any]) -> None:
    for value in args:
        if isinstance(value, int) and abs(value) > NUMBER:
            raise ExceededError(f"calls a function with a number beyond {NUMBER:,}")


def _check_replace(text: str, old: str, new: str) -> None:
    count = text.count(old) if old else len(text) + 1
    _check_product(count, len(new))


_WIDE = {
    "%": r"%(?:\([^)]*\))?[-#0 +]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))",
    "{": r"\{[^{}]*:[^{}]*(?:\d{4}|\{)",
}
"""Widths of four digits or more, or taken from an argument, in both ways to format."""


def _check_format(text: str, mark: str, arguments: Any) -> None:
    if re.search(_WIDE[mark], text):
        raise ExceededError("formats with a width of four digits or more, or a variable one")
    size = sum(len(v) if isinstance(v, str) else 16 for v in _weighed([str(arguments)]))
    _check_product(text.count(mark), size)


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if name == "replace" and len(args) > 1:
        _check_replace(text, str(args[0]), str(args[1]))
    elif name == "join" and args:
        bounded(args[0])
        _check_product(len(text), len(args[0]) if hasattr(args[0], "__len__") else NUMBER)
    elif name in ("format", "format_map"):
        _check_format(text, "{", [args, kwargs])
    elif name in ("strip", "lstrip", "rstrip") and args and isinstance(args[0], str):
        _check_product(len(args[0]), 10_000)


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """``args``: the filtered value first."""
    if name == "replace" and len(args) > 2:
        _check_replace(str(args[0]), str(args[1]), str(args[2]))
    elif name == "join":
        separator = str(args[1] if len(args) > 1 else kwargs.get("d", ""))
        _check_product(len(separator), len(args[0]) if hasattr(args[0], "__len__") else NUMBER)
    elif name == "format":
        _check_format(str(args[0]), "%", [args[1:], kwargs])
    elif name == "indent":
        width = args[1] if len(args) > 1 else kwargs.get("width", 4)
        _check_product(len(width) if isinstance(width, str) else int(width), str(args[0]).count("\n") + 1)
    elif name == "trim" and (chars := args[1] if len(args) > 1 else kwargs.get("chars")):
        _check_product(len(chars), 10_000)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter ``function`` with its arguments checked, its result weighed."""
    skipped = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        BUDGET.get().step()
        given = args[skipped:]
        if name in ("batch", "slice", "round"):
            _check_arguments([*given[1:], *kwargs.values()])
        _check_filter(name, given, kwargs)
        return bounded(function(*args, **kwargs))

    return call


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, str) or not 0 <= (indent or 0) <= 16 or any(len(s) > 8 for s in separators or ()):
        raise ExceededError("writes JSON with more than 16 spaces of indentation")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    if len(form) > 1000 or re.search(r"%[-_0^#+]*\d{3}", form):
        raise ExceededError("formats a date with a width of three digits or more")
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise RefusedError(str(message))


def _concatenated(values: list[Any]) -> str:
    return "".join(_weighed(map(str, values)))


class _Counted:
    """What a loop runs over, each turn counted."""

    __slots__ = ("_values",)

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            BUDGET.get().step()
            yield value


class _Namespace(Namespace):
    """``namespace()`` without private names; its ``repr`` hides the contents, which may hold each other."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no private name {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """``dict()``: a function, so that the type's own attributes are out of reach."""
    return dict(*args, **kwargs)


class _Generation(ext.Extension):
    """``{% generation %}…{% endgeneration %}`` gives what is inside: it only marks the assistant's tokens."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bound(NodeTransformer):
    """Put the counting and weighing into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        """Count the turns."""
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        """Weigh the parts of ``a ~ b`` before they are joined."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes)
        parts.set_lineno(node.lineno)
        return _filtered(parts, "_concatenated")

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Expr:  # noqa: N802
        """Weigh literals: they can hold the same large value many times."""
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "_bounded")

    visit_Dict = visit_Tuple = visit_List  # noqa: N815


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno)
    return made


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates are written for, bounded."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(lambda parts: "".join(_weighed(parts)))

    def __init__(self) -> None:
        # Constants are not folded: that would run filters while the template is compiled, unbounded.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            optimized=False,
            finalize=pass_context(lambda context, value: value),
        )
        self.filters = {name: _guarded(name, self.filters[name]) for name in FILTERS}
        self.filters |= {"tojson": _guarded("tojson", _tojson), "_bounded": bounded}
        self.filters |= {"_counted": _Counted, "_concatenated": _concatenated}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"namespace": _Namespace, "dict": _dict}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        bound: nodes.Template = _Bound().visit(source)
        bound.set_environment(self)
        return super()._generate(bound, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Nothing private, and of text only METHODS."""
        if isinstance(obj, str | bytes) and attr not in METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once, not when the result is used."""
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__}")

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count a call, check its arguments, weigh its result."""
        BUDGET.get().step()
        # The sandbox wraps str.format, the only method it replaces.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, int | float):
            _check_arguments([*args, *kwargs.values()])
        elif isinstance(owner, str):
            _check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        return bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Weigh what ``+``, ``*``, ``**`` and ``%`` make; beforehand where that can be a lot."""
        BUDGET.get().step()
        sizes = [len(v) if hasattr(v, "__len__") else None for v in (left, right)]
        if operator == "*" and any(sizes):
            _check_product(
                *(size if size is not None else int(v) for size, v in zip(sizes, (left, right), strict=True))
            )
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * max(right, 0) > 10_000:
                raise ExceededError("makes a number of more than 10,000 bits")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, "%", right)
        return bounded(super().call_binop(context, operator, left, right))


__all__ = ["ExceededError", "RefusedError", "Sandbox", "SecurityError", "render"]
