"""Import a transformers module, called by convention; the reference's module is built when it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
) -> Import:
    """Import ``module``, called with ``inputs``, else as ``default_inputs`` and ``--input`` specs say.

    ``stored`` gives the values of parameters that ``module`` does not hold, by address; ``build`` then makes
    the same module with them, for the reference. Raises: as ``import_module``.
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
        imported.reference = Deferred(imported.reference, build)
    return imported


class Deferred:
    """A torch reference whose module is built when it is first run."""

    def __init__(self, empty: TorchReference, build: Callable[[], Any]) -> None:
        self.name = empty.name
        self._empty = empty
        self._build = build
        self._made: TorchReference | None = None

    @property
    def reference(self) -> TorchReference:
        """The reference over the module with its weights. Raises: as the module's loader."""
        if self._made is None:
            self._made = self._empty.over(self._build())
        return self._made

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the module. Raises: InputError if an input is missing, and as its loader."""
        return self.reference.run(inputs)

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the module's layers by path."""
        return self.reference.layers(inputs)
