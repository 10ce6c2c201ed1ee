"""Calls an executable as its source is called: arguments into named inputs, outputs into its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..compiler.errors import InputError, Problem
from ..compiler.program import Call, TensorSpec, Tree
from ..compiler.reference import Arrays
from .tensors import from_numpy


def flatten(call: Call, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Input tensors by name for ``source(*args, **kwargs)``.

    Raises: InputError listing every argument that is unknown, given twice or of another structure than
    the source was traced with.
    """
    names = list(call.parameters)
    problems: list[Problem] = []
    if len(args) > len(names):
        fix = f"its parameters are {', '.join(names)}"
        problems.append(Problem("call", f"takes {len(names)} arguments, got {len(args)}", fix))
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in call.parameters:
            fix = f"its parameters are {', '.join(names)}"
            problems.append(Problem(f"argument {name!r}", "does not exist", fix))
        elif name in given:
            problems.append(Problem(f"argument {name!r}", "is given twice", "give it once"))
        else:
            given[name] = value
    inputs: dict[str, object] = {}
    for name, tree in call.parameters.items():
        for leaf in _match(tree, given.get(name), f"argument {name!r}"):
            if isinstance(leaf, Problem):
                problems.append(leaf)
            else:
                inputs[leaf[0]] = leaf[1]
    if problems:
        raise InputError.of(problems)
    return inputs


def _match(tree: Tree, value: Any, place: str) -> Iterator[tuple[str, object] | Problem]:
    """(input name, tensor) for every leaf of ``tree``, or what is wrong."""
    if tree is None:
        if value is not None:
            yield Problem(place, "was absent when the model was compiled", "compile with it, or leave it out")
    elif isinstance(tree, str):
        if value is None:
            yield Problem(place, "is missing", f"give a tensor for input {tree!r}")
        else:
            yield tree, value
    elif isinstance(tree, dict) and "dict" in tree:
        yield from _match_dict(tree["dict"], value, place)
    else:
        items = tree["tuple"] if isinstance(tree, dict) else tree
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            yield Problem(place, f"is no sequence of {len(items)}", "give the structure it was compiled with")
            return
        for index, (item, part) in enumerate(zip(items, value, strict=True)):
            yield from _match(item, part, f"{place}[{index}]")


def _match_dict(items: Mapping[str, Tree], value: Any, place: str) -> Iterator[tuple[str, object] | Problem]:
    if not isinstance(value, Mapping):
        yield Problem(place, "is no dict", f"give one with {', '.join(items)}")
        return
    for key in value:
        if key not in items:
            yield Problem(f"{place}[{key!r}]", "does not exist", f"its keys are {', '.join(items)}")
    for key, item in items.items():
        yield from _match(item, value.get(key), f"{place}[{key!r}]")


def unflatten(call: Call, outputs: Arrays) -> Any:
    """The source's result, made of ``outputs`` in the source's own kind of tensor."""
    return _build(call.result, outputs, call.tensors)


def _build(tree: Tree, outputs: Arrays, tensors: str) -> Any:
    if tree is None:
        return None
    if isinstance(tree, str):
        return from_numpy(outputs[tree], tensors)
    if isinstance(tree, dict) and "dict" in tree:
        return {key: _build(item, outputs, tensors) for key, item in tree["dict"].items()}
    if isinstance(tree, dict):
        return tuple(_build(item, outputs, tensors) for item in tree["tuple"])
    return [_build(item, outputs, tensors) for item in tree]


def default_call(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Call:
    """For sources without a calling convention: inputs by name or position; one output, or a dict of all."""
    names: list[Tree] = [spec.name for spec in outputs]
    result: Tree = names[0] if len(names) == 1 else {"dict": {spec.name: spec.name for spec in outputs}}
    return Call({spec.name: spec.name for spec in inputs}, result)
