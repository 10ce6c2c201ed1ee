"""The Keras model itself as the reference: its outputs, and its layers' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...compiler.errors import InputError
from ...compiler.reference import Array, Arrays
from ..pytorch.capture import quiet
from ..pytorch.trees import result_leaves, to_numpy, to_tensor
from .layers import recorded_calls


class KerasReference:
    """Runs a Keras model on named arrays, for inference; ``paths`` are the layers that ``layers`` gives."""

    def __init__(
        self, module: Any, inputs: Sequence[str], outputs: Sequence[str], paths: Sequence[str]
    ) -> None:
        import keras

        self.name = f"keras {keras.__version__}"
        self._module = module
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._paths = frozenset(paths)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the model. Raises: InputError if an input is missing."""
        leaves, _ = result_leaves(self._call(inputs))
        return dict(zip(self._outputs, map(to_numpy, leaves), strict=True))

    def build(self, inputs: Mapping[str, Array]) -> None:
        """Call the model once: a subclassed one makes its weights then."""
        self._call(inputs)

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """First output tensor of every layer call in ``paths``."""
        found: Arrays = {}

        def record(path: str, result: Any) -> None:
            leaves, _ = result_leaves(result)
            if path in self._paths and leaves:
                found[path] = to_numpy(leaves[0]).copy()

        with recorded_calls(record):
            self._call(inputs)
        return found

    def _call(self, inputs: Mapping[str, Array]) -> Any:
        import torch

        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise InputError("reference", f"no input {', '.join(missing)}", f"give {', '.join(self._inputs)}")
        with quiet(), torch.no_grad():
            return self._module(*(to_tensor(inputs[name]) for name in self._inputs))
