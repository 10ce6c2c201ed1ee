"""Import a transformers module, called by convention; the reference's module is built when it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...compiler.options import CompileOptions
from ...compiler.reference import Array, Arrays
from ..base import Import
from ..pytorch import import_module
from ..pytorch.examples import tensor_of
from ..pytorch.reference import TorchReference
from ..pytorch.weights import Weight
from .inputs import default_inputs


def import_transformers(
    module: Any,
    options: CompileOptions,
    inputs: object = None,
    stored: Mapping[int, Weight] | None = None,
    build: Callable[[], Any] | None = None,
    stream: Callable[[], Any] | None = None,
) -> Import:
    """Import ``module``, called with ``inputs``, else as ``default_inputs`` and ``--input`` specs say.

    ``stored`` gives the values of parameters that ``module`` does not hold, by address; ``build`` then makes
    the same module with them, for the reference; ``stream`` one that holds few of them at a time.
    Raises: as ``import_module``.
    """
    given = inputs
    if inputs is None:
        made: dict[str, object] = dict(default_inputs(module))
        ranges = dict(options.dims)
        made |= {spec.name: tensor_of(spec, ranges) for spec in options.inputs if spec.name not in made}
        inputs = made
    imported = import_module(module, options, inputs, framework="transformers", stored=stored)
    if given is None:
        imported.examples = None
    if build is not None and isinstance(imported.reference, TorchReference):
        imported.reference = Deferred(imported.reference, build, stream)
    return imported


class Deferred:
    """A torch reference whose module is built when it is first run.

    ``stream`` makes a module that reads its weights as it runs, and gives NaN where that is not possible for
    this module: then, as without it, ``build`` makes one that holds them.
    """

    def __init__(
        self, empty: TorchReference, build: Callable[[], Any], stream: Callable[[], Any] | None = None
    ) -> None:
        self.name = empty.name
        self._empty = empty
        self._build = build
        self._stream = stream
        self._made: TorchReference | None = None

    @property
    def reference(self) -> TorchReference:
        """The reference over the module with its weights. Raises: as the module's loader."""
        if self._made is None:
            self._made = self._empty.over((self._stream or self._build)())
        return self._made

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the module. Raises: InputError if an input is missing, and as its loader."""
        return self._whole(lambda reference: reference.run(inputs))

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the module's layers by path."""
        return self._whole(lambda reference: reference.layers(inputs))

    def _whole(self, run: Callable[[TorchReference], Arrays]) -> Arrays:
        found = run(self.reference)
        if self._stream is None or not any(_has_nan(array) for array in found.values()):
            return found
        self._stream = self._made = None
        return run(self.reference)


def _has_nan(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating) and np.isnan(array).any())
