"""How a Keras model is called: the structure, names, shapes and dtypes of its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.errors import InputError, Problem
from ...compiler.options import CompileOptions
from ...compiler.program import Tree

BATCH, LENGTH = 2, 5


@dataclass(frozen=True, slots=True)
class Signature:
    """``names`` in the model's order; ``axes`` are the dynamic dimensions Keras leaves open (``None``).

    ``structure`` nests indices into ``names`` the way the model takes its tensors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    structure: Any

    @property
    def axes(self) -> list[dict[int, str]]:
        """``batch`` first, ``sequence`` for an open second dimension of ids or features, else ``input_1``."""
        return [self._axes(name, shape) for name, shape in zip(self.names, self.shapes, strict=True)]

    def _axes(self, name: str, shape: Sequence[int | None]) -> dict[int, str]:
        axes = {}
        for axis, size in enumerate(shape):
            if size is None:
                sequence = axis == 1 and len(shape) <= 3
                axes[axis] = "batch" if axis == 0 else "sequence" if sequence else f"{name}_{axis}"
        return axes

    def examples(self) -> list[np.ndarray[Any, Any]]:
        """Small arrays of the right shape: ones for ids and masks, else numbers in [0, 1)."""
        random = np.random.default_rng(0)
        made = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            sizes = [size or (BATCH if axis == 0 else LENGTH) for axis, size in enumerate(shape)]
            floating = dtype.startswith(("float", "bfloat"))
            made.append(random.random(sizes).astype("float32") if floating else np.ones(sizes, dtype))
        return made

    def nest(self, leaves: Sequence[Any]) -> Any:
        """``leaves`` in the model's own structure."""
        return _map(self.structure, lambda index: leaves[index])

    def tree(self) -> Tree:
        """The structure as a tree of input names."""
        from ..pytorch.trees import json_tree

        return json_tree(self.nest(self.names))

    def flatten(self, inputs: object) -> list[Any]:
        """User's arrays in the order of ``names``. Raises: InputError naming what is missing."""
        if isinstance(inputs, Mapping):
            given = {str(key): value for key, value in inputs.items()}
        else:
            values = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
            given = dict(zip(self.names, values, strict=False))
        fix = f"the model takes {', '.join(self.names)}"
        wrong = [Problem("inputs", f"{name!r} is missing", fix) for name in self.names if name not in given]
        wrong += [Problem("inputs", f"{name!r} is no input", fix) for name in given if name not in self.names]
        if wrong:
            raise InputError.of(wrong)
        return [_array(given[name], dtype) for name, dtype in zip(self.names, self.dtypes, strict=True)]


def signature_of(model: Any, inputs: object, options: CompileOptions) -> Signature:
    """The signature of a functional model, or of a subclassed one as it was built or as ``inputs`` shows.

    Raises: InputError if nothing says what the model takes.
    """
    import keras

    struct = getattr(model, "_inputs_struct", None)
    if struct is not None:
        tensors = list(model.inputs)
        order = {id(tensor): index for index, tensor in enumerate(tensors)}
        structure = keras.tree.map_structure(lambda tensor: order[id(tensor)], struct)
        shapes = tuple(tuple(t.shape) for t in tensors)
        return Signature(_names(tensors), shapes, tuple(t.dtype for t in tensors), structure)
    return _subclassed(model, inputs, options)


def _subclassed(model: Any, inputs: object, options: CompileOptions) -> Signature:
    parameters = list(inspect.signature(model.call).parameters)
    first = parameters[0] if parameters else "inputs"
    if inputs is not None:
        return _from_examples(inputs, first)
    if options.inputs:
        shapes = tuple(
            tuple(d if isinstance(d, int) else None for d in spec.shape) for spec in options.inputs
        )
        names = tuple(spec.name for spec in options.inputs)
        dtypes = tuple(_dtype(spec) for spec in options.inputs)
        return Signature(names, shapes, dtypes, 0 if len(names) == 1 else list(range(len(names))))
    built = getattr(model, "_build_shapes_dict", None) or {}
    shapes = tuple(tuple(shape) for shape in built.values() if isinstance(shape, tuple | list))
    if len(shapes) == 1 and all(size is None or isinstance(size, int) for size in shapes[0]):
        shape = (None, *shapes[0][1:])
        return Signature((first,), (shape,), ("float32",), 0)
    raise InputError(
        "inputs", "a subclassed Keras model needs example inputs", f"pass inputs=... or --input {first}:SHAPE"
    )


def _from_examples(inputs: object, first: str) -> Signature:
    if isinstance(inputs, Mapping):
        names = tuple(map(str, inputs))
        arrays = [_array(value, "") for value in inputs.values()]
        structure: Any = {name: index for index, name in enumerate(names)}
    elif isinstance(inputs, tuple | list):
        arrays = [_array(value, "") for value in inputs]
        names = tuple(f"{first}_{index}" for index in range(len(arrays)))
        structure = list(range(len(arrays)))
    else:
        arrays, names, structure = [_array(inputs, "")], (first,), 0
    shapes = tuple((None, *array.shape[1:]) for array in arrays)
    return Signature(names, shapes, tuple(array.dtype.name for array in arrays), structure)


def _array(value: Any, dtype: str) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    return array.astype(dtype) if dtype and dtype != "bfloat16" else array


def _dtype(spec: Any) -> str:
    if spec.dtype is not None:
        return str(spec.dtype.numpy().name)
    return "int32" if spec.name.endswith(("ids", "tokens")) else "float32"


def _names(tensors: Sequence[Any]) -> tuple[str, ...]:
    names: list[str] = []
    for tensor in tensors:
        name = "".join(c if c.isalnum() or c == "_" else "_" for c in str(tensor.name))
        names.append(name if name not in names else f"{name}_{len(names)}")
    return tuple(names)


def _map(structure: Any, function: Any) -> Any:
    if isinstance(structure, int):
        return function(structure)
    if isinstance(structure, Mapping):
        return {key: _map(item, function) for key, item in structure.items()}
    return type(structure)(_map(item, function) for item in structure)
