"""Functions of model.c that steps call: one for each kernel with its facts fixed, shared by all layers."""

from __future__ import annotations

PLACE = "NAME"
"""Stands for a function's name in its text."""


class Functions:
    """Texts by name; the same text asked for again is the same function."""

    __slots__ = ("_names", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}

    def add(self, name: str, text: str) -> str:
        """The name of the function with this text: ``name``, numbered if another has it."""
        known = self._names.get((name, text))
        if known is not None:
            return known
        unique, number = name, 2
        while unique in self.texts:
            unique, number = f"{name}_{number}", number + 1
        self.texts[unique] = text.replace(PLACE, unique)
        self._names[name, text] = unique
        return unique
