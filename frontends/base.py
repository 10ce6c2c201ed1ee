"""What a frontend hands over: the program, and the source framework's own execution of the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.program import Program
from ..compiler.reference import Arrays, Reference


@dataclass(slots=True)
class Import:
    """A frontend's result. ``examples``: inputs the user gave, if any, by input name."""

    program: Program
    reference: Reference
    examples: Arrays | None = None
