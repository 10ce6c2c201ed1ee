"""The exception tree, and the one way a message is written: place, fact, fix.

::

    MiaotuiError
    ├── CompileError          the user's model, options or inputs; says where, what and how to mend it
    │   ├── OptionError       a flag or option that does not parse or contradicts another          exit 2
    │   ├── ModelError        a model file that is missing, truncated, malformed or refused         exit 2
    │   ├── InputError        run-time inputs whose name, shape or dtype does not fit               exit 2
    │   ├── ArtifactError     an executable folder that is damaged, foreign or of another version   exit 2
    │   ├── UnsupportedError  operators or constructs a frontend or backend does not have           exit 3
    │   ├── PlacementError    nodes that would silently run on another device (--strict)            exit 3
    │   ├── ToolError         a package or program that is not installed                            exit 3
    │   ├── DeviceError       a device that is out of memory, failed or was lost while it ran           exit 1
    │   ├── WorkerError       a worker of a partitioned program that died or gave no answer in time exit 1
    │   └── VerificationError the executable's outputs differ from the source framework's            exit 1
    └── InternalError         our bug: the verifier or an invariant failed                         exit 70
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it.

    >>> str(Problem("model.onnx: node 'conv1' (Conv)", "group=3 does not divide 64 channels"))
    "model.onnx: node 'conv1' (Conv): group=3 does not divide 64 channels"
    """

    place: str
    fact: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.fact}" + (f"; {self.fix}" if self.fix else "")


class MiaotuiError(Exception):
    """Root of everything miaotui raises on purpose."""

    exit_code: ClassVar[int] = 1


class CompileError(MiaotuiError):
    """The user's model, options or inputs can't be compiled or run as given.

    ``problems`` holds every problem of the kind that was found, not just the first.

    >>> print(ModelError("a.onnx", "file is empty", "download it again"))
    a.onnx: file is empty; download it again
    """

    exit_code = 2

    def __init__(self, place: str, fact: str, fix: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(place, fact, fix),)
        super().__init__(str(self.problems[0]))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).of, (self.problems,))

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> CompileError:
        """One error that carries all ``problems``, one a line."""
        error = cls(problems[0].place, problems[0].fact, problems[0].fix)
        error.problems = tuple(problems)
        error.args = ("\n".join(map(str, problems)),)
        return error


class OptionError(CompileError):
    """A flag or option that does not parse, or contradicts another."""


class ModelError(CompileError):
    """A model file that is missing, truncated, malformed, too large or refused for safety."""


class InputError(CompileError):
    """Run-time inputs whose names, shapes or dtypes do not fit the entry's signature."""


class ArtifactError(CompileError):
    """An executable folder that is damaged, not ours, or written by another schema version."""


class UnsupportedError(CompileError):
    """Operators or constructs that a frontend, pass or backend does not have; lists all of them."""

    exit_code = 3


class PlacementError(CompileError):
    """Nodes that would silently run on another device than the target."""

    exit_code = 3


class ToolError(CompileError):
    """A package or program that is not installed; the fix is the exact command."""

    exit_code = 3


class DeviceError(CompileError):
    """A device that is out of memory, failed or was lost; the place is what it was running."""

    exit_code = 1


class WorkerError(CompileError):
    """A worker of a partitioned program that died, hung or could not be reached, and which one."""

    exit_code = 1


class VerificationError(CompileError):
    """The executable's outputs differ from the source framework's by more than the tolerance."""

    exit_code = 1


class InternalError(MiaotuiError):
    """Our own bug: an invariant or the verifier failed. Please report it with the model."""

    exit_code = 70


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises: ToolError if ``module`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ToolError(module, "is not installed", f"pip install 'miaotui[{extra}]'") from error
