"""The runner protocol: one opened variant of an executable folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from ..compiler.program import TensorSpec
from ..compiler.reference import Array, Arrays


class Runner(Protocol):
    """Runs one entry of one variant; a context manager that frees its session on exit."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name. Raises: InputError listing every input that does not fit."""
        ...

    def close(self) -> None:
        """Free the session; running afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
