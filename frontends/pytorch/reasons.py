"""Why torch.export refused a module, in a sentence with the fix."""

from __future__ import annotations

import re

from ...compiler.errors import CompileError, Problem, UnsupportedError
from .trees import Arguments


def explain(error: Exception, name: str, arguments: Arguments) -> CompileError:
    """torch's reason in a sentence, with the inputs' names instead of its own paths."""
    text = str(error)

    def place(match: re.Match[str]) -> str:
        return f"{arguments.names[int(match[1])]} dimension {match[2]}"

    text = re.sub(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]", place, text)
    text = re.sub(r"args?\[(\d+)\]\.shape\[(\d+)\]", place, text)
    if ("onstraint" in text and "violat" in text) or "specialized" in text:
        lines = [line.strip(" -\t") for line in text.splitlines() if line.lstrip().startswith("- ")]
        fixes = re.findall(
            r"^\s*(\w+) = (?:Dim\('\w+', )?(.+?)\)?$", text.partition("Suggested fixes:")[2], re.M
        )
        fix = ", ".join(_dim_option(dim, value) for dim, value in fixes)
        fix = f"use {fix}" if fix else "fix the size with --dim NAME=SIZE or --input NAME:SHAPE"
        problems = [Problem(name, _sentence(line), fix) for line in dict.fromkeys(lines)]
        return UnsupportedError.of(problems or [Problem(name, _sentence(text), fix)])
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        line = re.search(r'File "(.+?)", line (\d+)', text)
        where = f" at {line[1].rsplit('/', 1)[-1]}:{line[2]}" if line else ""
        fact = f"control flow depends on a tensor's value{where}"
        return UnsupportedError(name, fact, "use torch.where or torch.cond instead of if or .item()")
    return UnsupportedError(name, f"torch.export fails: {_sentence(text) or type(error).__name__}")


def _dim_option(dim: str, value: str) -> str:
    low, high = re.search(r"min=(\d+)", value), re.search(r"max=(\d+)", value)
    if low or high:
        return f"--dim {dim}={low[1] if low else 1}..{high[1] if high else ''}"
    return f"--dim {dim}={value}" if value.isdigit() else f"{dim} = {value}"


def _sentence(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    first = (
        first.partition(". If you're using")[0]
        .replace("You marked", "you asked for")
        .replace(
            " as dynamic but your code specialized it to be a constant",
            " to be dynamic, but the module fixes it at",
        )
    )
    first = re.sub(r"fixes it at \((\d+)\)", r"fixes it at \1", first)
    return first if len(first) <= 240 else first[:237] + "..."
