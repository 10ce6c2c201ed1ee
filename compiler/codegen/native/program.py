"""model.c: offsets of tensors, kernels with their facts fixed, and the functions of every entry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ...program import Program
from ..isa import Isa
from .emit.base import Size, factors
from .entry import EntryWriter, Finished, with_weights
from .tables import declared, facts, table
from .weights_file import WeightFile

_ALWAYS = ("program.h", "plan.h", "pool.h")

_WHERE_USED = {
    "linear.h": r"\blinear_spec\b|\bunpack_row\b",
    "attention.h": r"\battention_spec\b",
    "norm.h": r"\bnorm_row\b|\bsum_row\b",
    "argmax.h": r"\bargmax\(",
    "lookup.h": r"\bchecked\(",
    "elementwise.h": r"",
    "rows.h": r"\b(softmax|largest_of|smallest_of)_row\b",
    "matmul.h": r"\bmatmul_block\b",
    "rotate.h": r"\brotate_head\b",
}
"""Kernels by header, and what code that needs one says."""


def program_text(
    program: Program, entries: dict[str, Finished], functions: Sequence[str], weights: WeightFile, isa: Isa
) -> str:
    """The whole of model.c but for its fingerprint."""
    parts = [_tensors(weights), *functions]
    for name, finished in entries.items():
        parts += _entry(name, finished, program, weights)
    parts.append(table(program, entries, weights, isa))
    body = "\n".join(part for part in parts if part)
    lines = "\n".join([_head(program, entries, isa, body), body]).split("\n")
    return "\n".join(part for line in lines for part in wrapped(line))


def wrapped(line: str, width: int = 110) -> list[str]:
    """A line of C broken behind commas, where it is too long: before a field of a struct if there is one."""
    rows = []
    indent = line[: len(line) - len(line.lstrip())]
    behind = indent if line.startswith((".", "{"), len(indent)) else f"{indent}    "
    if not line.lstrip().startswith(("/*", "*", "#")):
        while len(line) > width:
            place = max(line.rfind(", .", len(indent) + 8, width), -1)
            if place < 0:
                place = line.rfind(", ", len(indent) + 8, width)
            if place < 0:
                break
            rows.append(line[: place + 1])
            line = f"{behind}{line[place + 2 :]}"
    return [*rows, line]


def _head(program: Program, entries: dict[str, Finished], isa: Isa, body: str) -> str:
    model = program.source.get("model", "a model").replace("*/", "")
    lines = [
        f"/* {model} for {isa.name}: {', '.join(entries)}.",
        " * Emitted by miaotui. The comment above a step names the layers of the source that it computes. */",
    ]
    names = [*_ALWAYS, *(name for name, used in _WHERE_USED.items() if re.search(used, body))]
    return "\n".join([*lines, *(f'#include "kernels/{name}"' for name in names), ""])


def _tensors(weights: WeightFile) -> str:
    """Offsets in the weight file by name."""
    if not weights.placed:
        return ""
    lines = [f"static const size_t {r.name} = {r.offset};" for r in weights.placed]
    return "\n".join(
        ["/* Where tensors lie in the weight file, in the order in which they are read. */", *lines, ""]
    )


def _entry(name: str, finished: Finished, program: Program, weights: WeightFile) -> Iterator[str]:
    yield facts(name, finished.entry, program)
    yield _memory(name, finished)
    yield _scratch(name, finished)
    yield _run(name, finished, weights)


# ---- memory


def _memory(name: str, finished: Finished) -> str:
    """Bytes of every buffer, and of all."""
    slots = finished.slots
    lines = []
    for index, slot in enumerate(slots):
        sizes = [_bytes(slot.ctype, size) for size in slot.sizes]
        amount = sizes[0]
        for size in sizes[1:]:
            amount = f"most({amount}, {size})"
        lines.append(f"    bytes[{index}] = {amount};")
    text = "\n".join(lines)
    head = "/* Bytes of the buffers; values that are never alive together share one. */"
    return "\n".join(
        [head, f"static void {name}_buffers(const int64_t *sizes, double *bytes)", "{",
         *declared(finished.entry, text), *([text] if lines else ["    (void)bytes;"]), "}", "",
         f"static double {name}_arena(const int64_t *sizes)", "{",
         f"    double bytes[{max(1, len(slots))}];", f"    {name}_buffers(sizes, bytes);",
         f"    return all_of({len(slots)}, bytes);", "}", ""]
    )  # fmt: skip


def _bytes(ctype: str, size: Size) -> str:
    number, names = factors(size)
    width = {"float": 4, "int32_t": 4, "int64_t": 8, "uint16_t": 2}.get(ctype, 1)
    return " * ".join([f"{number * width}.0", *(f"(double){n}" for n in names)])


def _scratch(name: str, finished: Finished) -> str:
    pairs = dict.fromkeys(pair for e in finished.steps for pair in e.step.scratch)
    columns = ((0, "worker_bytes"), (1, "shared_bytes"))
    lines = [f"    *{what} = size_max(*{what}, {pair[side]});" for pair in pairs for side, what in columns]
    text = "\n".join(lines)
    unused = [] if lines else ["    (void)worker_bytes, (void)shared_bytes;"]
    return "\n".join(
        [f"static void {name}_scratch(const int64_t *sizes, size_t *worker_bytes, size_t *shared_bytes)", "{",
         *declared(finished.entry, text), *lines, *unused, "}", ""]
    )  # fmt: skip


# ---- running


def _run(name: str, finished: Finished, weights: WeightFile) -> str:
    body = []
    for emitted in finished.steps:
        if emitted.waits:
            body.append("    barrier(w);")
        body += ["", f"    /* {emitted.step.source} */"]
        body += [f"    {line}" if line else line for line in with_weights(emitted.code, weights).split("\n")]
    text = "\n".join(body).lstrip("\n")
    entry = finished.entry
    lines = [f"static void {name}_run(worker *w, call *run)", "{"]
    sizes = [line for line in declared(entry, text, running=True) if "(void)" not in line]
    lines += [line.replace("sizes[", "run->sizes[") for line in sizes]
    if re.search(r"\bweights\b", text):
        lines.append("    const unsigned char *const weights = run->weights;")
    lines += _pointers(entry, text)
    if finished.slots:
        lines += [f"    double bytes[{len(finished.slots)}];", "    unsigned char *at = run->arena;",
                  f"    {name}_buffers(run->sizes, bytes);"]  # fmt: skip
        lines += [
            f"    {s.ctype} *const b{i} = ({s.ctype} *)take(&at, bytes[{i}]);"
            for i, s in enumerate(finished.slots)
        ]
    if not finished.steps:
        lines.append("    (void)w, (void)run;")
    elif not re.search(r"\bw\b", text):
        lines.append("    (void)w;")
    return "\n".join([*lines, "", text, "}", ""])


def _pointers(entry: EntryWriter, text: str) -> list[str]:
    lines = []
    for index, value in enumerate([*entry.inputs, *entry.outputs]):
        pointer = entry.pointer_of(value)
        if pointer is not None and re.search(rf"\b{pointer[1]}\b", text):
            const = "const " if index < len(entry.inputs) else ""
            lines.append(f"    {const}{pointer[0]} *const {pointer[1]} = run->tensors[{index}];")
    return lines
