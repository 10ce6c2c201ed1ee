"""Nested arguments and results of a torch module, as named tensors and as JSON trees that need no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from ...compiler.errors import InputError
from ...compiler.program import Tree


@dataclass(frozen=True, slots=True)
class Arguments:
    """One call of a module: its tensors by name, and how to put others in their place.

    ``leaves`` are the flattened arguments, ``positions`` the places of the tensors among them; every other
    leaf (number, flag, string) is a constant of the import.
    """

    signature: inspect.Signature
    spec: Any
    leaves: tuple[Any, ...]
    positions: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def bind(cls, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Bind a call to ``signature``. Raises: InputError if it does not fit or holds no tensor."""
        from torch.utils import _pytree as pytree

        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            fix = f"the module takes {signature}"
            raise InputError("inputs", f"do not fit the module's forward: {error}", fix) from None
        paths, spec = pytree.tree_flatten_with_path(_as_tensors(dict(bound.arguments)))
        leaves = [leaf for _, leaf in paths]
        positions = tuple(i for i, leaf in enumerate(leaves) if _is_tensor(leaf))
        if not positions:
            raise InputError("inputs", "hold no tensor", "pass the tensors the module is called with")
        skipped = {p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        names = _unique([_name(paths[i][0], skipped) for i in positions])
        return cls(signature, spec, tuple(leaves), positions, names)

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The tensors, in the order of ``names``."""
        return tuple(self.leaves[i] for i in self.positions)

    def call(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args`` and ``kwargs`` of the same call with other ``tensors``."""
        leaves = list(self.leaves)
        for position, tensor in zip(self.positions, tensors, strict=True):
            leaves[position] = tensor
        bound = inspect.BoundArguments(self.signature, _unflatten(leaves, self.spec))
        return bound.args, bound.kwargs

    def parameters(self, names: Sequence[str]) -> dict[str, Tree]:
        """Each parameter of the call as the tree of input ``names`` (``None`` for constants)."""
        by_position = dict(zip(self.positions, names, strict=True))
        arguments = _unflatten([by_position.get(i) for i in range(len(self.leaves))], self.spec)
        keywords = [p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        for name in keywords:
            arguments.update(arguments.pop(name, {}))
        return {name: json_tree(value) for name, value in arguments.items()}


def result_leaves(result: Any) -> tuple[list[Any], Callable[[Sequence[str]], Tree]]:
    """The tensors of a module's ``result`` in order, and a function from their names to the result's tree."""
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten(result)
    positions = [i for i, leaf in enumerate(leaves) if _is_tensor(leaf)]

    def tree(names: Sequence[str]) -> Tree:
        by_position = dict(zip(positions, names, strict=True))
        return json_tree(_unflatten([by_position.get(i) for i in range(len(leaves))], spec))

    return [leaves[i] for i in positions], tree


def result_names(result: Any) -> tuple[str, ...]:
    """Output names after the result's structure: dict keys and fields, ``output`` for a lone tensor."""
    from torch.utils import _pytree as pytree

    paths, _ = pytree.tree_flatten_with_path(result)
    paths = [(path, leaf) for path, leaf in paths if _is_tensor(leaf)]
    if len(paths) == 1 and not isinstance(result, Mapping):
        return ("output",)
    names = [_name(path, set()) for path, _ in paths]
    return _unique([f"output_{name}" if name[0].isdigit() else name for name in names])


def json_tree(value: Any) -> Tree:
    """A nest of names as the JSON tree of ``compiler.program``; any mapping or dataclass becomes a dict."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {"dict": {str(key): json_tree(item) for key, item in value.items()}}
    if is_dataclass(value):
        return {"dict": {f.name: json_tree(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple):
        return {"tuple": [json_tree(item) for item in value]}
    if isinstance(value, list):
        return [json_tree(item) for item in value]
    return None


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """A torch tensor as numpy, bfloat16 included; memory is shared where torch can."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return np.asarray(tensor.view(torch.uint16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """A numpy array, bfloat16 included, as a torch tensor; copied if it is read-only or not contiguous."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _as_tensors(tree: Any) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_map(
        lambda x: to_tensor(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x, tree
    )


def _is_tensor(leaf: Any) -> bool:
    import torch

    return isinstance(leaf, torch.Tensor)


def _unflatten(leaves: Sequence[Any], spec: Any) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_unflatten(leaves, spec)


def _name(path: Sequence[Any], skipped: set[str]) -> str:
    keys = [next(str(getattr(k, a)) for a in ("key", "idx", "name") if hasattr(k, a)) for k in path]
    if keys and keys[0] in skipped:
        keys = keys[1:]
    return re.sub(r"\W", "_", "_".join(keys)) or "output"


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return tuple(unique)
