"""The runner protocol: one opened entry of a variant; and what a runner is opened from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from ..compiler.manifest import Entry
from ..compiler.options import Target
from ..compiler.program import Decoding, TensorSpec
from ..compiler.reference import Array, Arrays
from .device_memory import Memory


class Runner(Protocol):
    """Runs one entry of one variant; a context manager that frees its session on exit.

    ``threads``: workers of a run. ``load_seconds``: how long opening took.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    threads: int
    load_seconds: float

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name. Raises: InputError listing every input that does not fit."""
        ...

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays that fit the signature. Raises: InputError listing every one that does not."""
        ...

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """``run`` without the checks, for inputs that ``check`` returned: what timing measures."""
        ...

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """Every input and the wanted outputs bound to memory, contiguous; outputs left out are dropped.

        The memory is read and written by each ``run_bound``: its owner keeps it. A state that is written in
        place has the same array as input and as output.
        """
        ...

    def run_bound(self, binding: Any) -> None:
        """Run over the memory of a binding."""
        ...

    def close(self) -> None:
        """Free the session; running afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class State(Protocol):
    """The KV cache of some rows, wherever it lies.

    ``capacity``: tokens of each row that there is room for. ``sides``: of each, what is bound for every state
    tensor, sliced by rows; two where past and present can't share one. ``side``: which of them is the past.
    """

    rows: int
    capacity: int
    side: int

    @property
    def sides(self) -> Sequence[Sequence[Any]]:
        """What is bound, by side, then tensor."""
        ...

    def flip(self) -> None:
        """After a run: what was the present is the past."""
        ...

    def grow(self, capacity: int) -> None:
        """Room for ``capacity`` tokens a row; what is held stays."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order."""
        ...

    def settle(self, row: int, side: int) -> None:
        """Bring what ``row`` wrote by itself on ``side`` to the side that all rows are on."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A runner whose state is not in the caller's memory."""

    def keep_state(self, decoding: Decoding, rows: int, capacity: int) -> State:
        """State for ``rows`` sequences, empty."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A runner that runs over its device's own memory. ``device``: ``"cpu"``, where that is main memory."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    device: str

    @property
    def memory(self) -> Memory:
        """The device's memory."""
        ...


class Model(Protocol):
    """One entry of a built variant: what a runner is opened from."""

    @property
    def signature(self) -> Entry:
        """Its inputs and outputs."""
        ...

    @property
    def target(self) -> Target:
        """What it was built for."""
        ...

    def open(self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False) -> Runner:
        """A runner; the caller closes it.

        ``threads``: None takes the physical cores this process may use. ``taps``: inner values, by name, to
        give as outputs too, where the backend keeps them; others are left out. ``resting``: its worker
        threads rest as soon as a run ends, so that it disturbs no other.
        """
        ...

    def code(self) -> bytes:
        """What tells two builds of one program apart."""
        ...

    def computed(self) -> list[str]:
        """Names of the inner values that it can give, in execution order."""
        ...
