"""model.c: tables, the functions of kernels with their facts fixed, and one function per entry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ...program import Decoding, DimRange, Program, dim_of
from .checks import checks_of
from .emit.base import Size, factors
from .entry import EntryWriter, Finished, with_weights
from .targets import Isa
from .weights_file import WeightFile

_INCLUDES = ("program.h", "plan.h", "linear.h", "attention.h", "norm.h", "elementwise.h", "pool.h")

FINGERPRINT = "FINGERPRINT"
"""Stands in the text for the bytes that are known once the weights are written."""


def program_text(
    program: Program, entries: dict[str, Finished], functions: Sequence[str], weights: WeightFile, isa: Isa
) -> str:
    """The whole of model.c but for its fingerprint."""
    parts = [_head(program, entries, isa), _tensors(weights), *functions]
    for name, finished in entries.items():
        parts += _entry(name, finished, program, weights)
    parts.append(_table(program, entries, weights, isa))
    return "\n".join(part for part in parts if part)


def _head(program: Program, entries: dict[str, Finished], isa: Isa) -> str:
    model = program.source.get("model", "a model").replace("*/", "")
    lines = [f"/* {model} for {isa.name}: {', '.join(entries)}. Emitted by miaotui from its intermediate form; the layers",
             " * that a step computes are named above it. */"]  # fmt: skip
    return "\n".join([*lines, *(f'#include "kernels/{name}"' for name in _INCLUDES), ""])


def _tensors(weights: WeightFile) -> str:
    """Offsets in the weight file by name."""
    if not weights.placed:
        return ""
    lines = [f"static const size_t {r.name} = {r.offset};" for r in weights.placed]
    return "\n".join(["/* Where tensors lie in the weight file, in the order in which they are read. */", *lines, ""])


def _entry(name: str, finished: Finished, program: Program, weights: WeightFile) -> Iterator[str]:
    yield _facts(name, finished.entry, program)
    yield _memory(name, finished)
    yield _scratch(name, finished)
    yield _run(name, finished, weights)


# ---- what is known of an entry


def _facts(name: str, entry: EntryWriter, program: Program) -> str:
    sizes = [_size_info(s, program.dims.get(s)) for s in entry.sizes_of_entry.names]
    decoding = _decoding_of(name, program)
    held = set() if decoding is None else {t.input for t in decoding.state}
    tensors = [_tensor_info(v, False, v.name in held) for v in entry.inputs]
    tensors += [_tensor_info(v, True, False) for v in entry.outputs]
    checks = checks_of(entry, decoding)
    lines = [f"/* ---- {name} ---- */", ""]
    if sizes:
        lines += [f"static const size_info {name}_sizes[] = {{", *sizes, "};"]
    lines += [f"static const miaotui_tensor {name}_tensors[] = {{", *tensors, "};"]
    if checks:
        lines += [f"static const input_check {name}_checks[] = {{", *checks, "};"]
    return "\n".join([*lines, "", *_shapes(name, entry)])


def _size_info(name: str, allowed: DimRange | None) -> str:
    allowed = DimRange(0) if allowed is None else allowed
    return f'    {{"{_escaped(name)}", {allowed.minimum}, {allowed.maximum or 0}}},'


def _tensor_info(value: ir.Value, is_output: bool, is_state: bool) -> str:
    assert value.dtype is not None and value.shape is not None
    return (
        f'    {{"{_escaped(str(value.name))}", {int(value.dtype)}, {len(value.shape)}, {int(is_output)}, {int(is_state)}}},'
    )


def _shapes(name: str, entry: EntryWriter) -> list[str]:
    """The function that gives a tensor's shape; tensors of one shape share a case."""
    cases: dict[tuple[Size, ...], list[int]] = {}
    for index, value in enumerate([*entry.inputs, *entry.outputs]):
        cases.setdefault(entry.sizes(value), []).append(index)
    lines = []
    for shape, tensors in cases.items():
        labels = "".join(f"    case {i}:\n" for i in tensors[:-1])
        body = [f"        shape[{axis}] = {size};" for axis, size in enumerate(shape)]
        lines += [f"{labels}    case {tensors[-1]}:", *body, "        break;"]
    text = "\n".join(lines)
    return [f"static void {name}_shape(int tensor, const int64_t *sizes, int64_t *shape)", "{",
            *_sizes(entry, text), "    switch (tensor) {", text, "    }", "}", ""]  # fmt: skip


def _sizes(entry: EntryWriter, text: str) -> list[str]:
    """Declarations of the named sizes that ``text`` uses; ``(void)`` where it uses none."""
    used = [
        f"{spelled} = sizes[{i}]"
        for i, spelled in enumerate(entry.sizes_of_entry.spelled)
        if re.search(rf"\b{spelled}\b", text)
    ]
    return [f"    const int64_t {', '.join(used)};"] if used else ["    (void)sizes;"]


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
         *_sizes(finished.entry, text), *([text] if lines else ["    (void)bytes;"]), "}", "",
         f"static double {name}_arena(const int64_t *sizes)", "{",
         f"    double bytes[{max(1, len(slots))}];", f"    {name}_buffers(sizes, bytes);",
         f"    return all_of({len(slots)}, bytes);", "}", ""]
    )  # fmt: skip


def _bytes(ctype: str, size: Size) -> str:
    number, names = factors(size)
    width = {"float": 4, "int32_t": 4, "int64_t": 8, "uint16_t": 2}.get(ctype, 1)
    return " * ".join([f"{number * width}.0", *(f"(double){n}" for n in names)])


def _scratch(name: str, finished: Finished) -> str:
    pairs = dict.fromkeys(pair for step in finished.steps for pair in step.scratch)
    columns = ((0, "worker_bytes"), (1, "shared_bytes"))
    lines = [
        f"    *{what} = larger(*{what}, {pair[side]});" for pair in pairs for side, what in columns
    ]
    text = "\n".join(lines)
    unused = [] if lines else ["    (void)worker_bytes, (void)shared_bytes;"]
    return "\n".join(
        [f"static void {name}_scratch(const int64_t *sizes, size_t *worker_bytes, size_t *shared_bytes)", "{",
         *_sizes(finished.entry, text), *lines, *unused, "}", ""]
    )  # fmt: skip


# ---- running


def _run(name: str, finished: Finished, weights: WeightFile) -> str:
    body = []
    for index, (step, code) in enumerate(finished.code):
        body.append(f"    /* {step.source} */")
        body += [f"    {line}" if line else line for line in with_weights(code, weights).split("\n")]
        if index < len(finished.code) - 1:
            body.append("    barrier(w);")
        body.append("")
    text = "\n".join(body).rstrip("\n")
    entry = finished.entry
    lines = [f"static void {name}_run(worker *w, call *run)", "{"]
    sizes = [line for line in _sizes(entry, text) if "(void)" not in line]
    lines += [line.replace("sizes[", "run->sizes[") for line in sizes]
    if re.search(r"\bweights\b", text):
        lines.append("    const unsigned char *const weights = run->weights;")
    lines += _pointers(entry, text)
    if finished.slots:
        lines += [f"    double bytes[{len(finished.slots)}];", "    unsigned char *at = run->arena;",
                  f"    {name}_buffers(run->sizes, bytes);"]  # fmt: skip
        lines += [
            f"    {s.ctype} *const b{i} = ({s.ctype} *)take(&at, bytes[{i}]);" for i, s in enumerate(finished.slots)
        ]
    if not finished.code:
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


# ---- the table


def _table(program: Program, entries: dict[str, Finished], weights: WeightFile, isa: Isa) -> str:
    lines = ["/* ---- the program ---- */", "", "static const entry_info entries[] = {"]
    for name, finished in entries.items():
        entry = finished.entry
        sizes, tensors = len(entry.sizes_of_entry.names), len(entry.inputs) + len(entry.outputs)
        checks = len(checks_of(entry, _decoding_of(name, program)))
        lines.append(
            f'    {{"{_escaped(name)}", {sizes}, {f"{name}_sizes" if sizes else "NULL"}, {tensors}, {name}_tensors, {checks},'
            f" {f'{name}_checks' if checks else 'NULL'},\n"
            f"     {name}_shape, {name}_arena, {name}_scratch, {name}_run}},"
        )
    lines += ["};", ""]
    decoding = program.decoding
    if decoding is not None:
        lines += [_decoding(decoding, entries), ""]
    needs = ", ".join([*(f'"{n}"' for n in isa.needs), "NULL"])
    lines += [
        f"static const char *const needs[] = {{{needs}}};",
        "",
        "const program_info miaotui_program = {",
        f'    .isa = "{isa.name}",',
        "    .needs = needs,",
        f"    .weights_size = {weights.size},",
        f"    .fingerprint = {{{FINGERPRINT}}},",
        f"    .entry_count = {len(entries)},",
        "    .entries = entries,",
        f"    .decoding = {'NULL' if decoding is None else '&decoding'},",
        "};",
        "",
    ]
    return "\n".join(lines)


def _decoding_of(name: str, program: Program) -> Decoding | None:
    decoding = program.decoding
    return decoding if decoding is not None and decoding.entry == name else None


def _decoding(decoding: Decoding, entries: dict[str, Finished]) -> str:
    names = list(entries)
    entry = entries[decoding.entry].entry
    tensors = [str(v.name) for v in (*entry.inputs, *entry.outputs)]
    sizes = entry.sizes_of_entry.names

    def size(of: EntryWriter, tensor: str, axis: int) -> int:
        value = next(v for v in of.inputs if v.name == tensor)
        assert value.shape is not None
        dim = dim_of(value.shape[axis])
        return of.sizes_of_entry.names.index(dim) if dim in of.sizes_of_entry.names else -1

    fields = {
        "entry": names.index(decoding.entry),
        "vocabulary": decoding.vocabulary,
        "context": decoding.context or 0,
        "tokens": tensors.index(decoding.tokens),
        "lengths": tensors.index(decoding.lengths),
        "select": tensors.index(decoding.select),
        "logits": tensors.index(decoding.logits),
        "next": tensors.index(decoding.next),
        "batch_size": size(entry, decoding.tokens, 0),
        "tokens_size": size(entry, decoding.tokens, 1),
        "selected_size": size(entry, decoding.select, 1),
        "capacity_size": size(entry, decoding.state[0].input, 2) if decoding.state else -1,
        "encoder": -1,
        "encoder_ids": -1,
        "encoder_mask": -1,
        "encoder_batch_size": -1,
        "encoder_source_size": -1,
        "source_size": -1,
    }
    if decoding.encoder is not None and decoding.encoder in entries:
        encoder = entries[decoding.encoder].entry
        inputs = [str(v.name) for v in encoder.inputs]
        masks = [i for i, n in enumerate(inputs) if n in decoding.encoder_inputs and "mask" in n]
        ids = [i for i, _ in enumerate(inputs) if i not in masks]
        source = encoder.inputs[ids[0]].shape
        assert source is not None
        symbol = dim_of(source[1])
        fields |= {
            "encoder": names.index(decoding.encoder),
            "encoder_ids": ids[0],
            "encoder_mask": masks[0] if masks else -1,
            "encoder_batch_size": size(encoder, inputs[ids[0]], 0),
            "encoder_source_size": size(encoder, inputs[ids[0]], 1),
            "source_size": sizes.index(symbol) if symbol in sizes else -1,
        }
    lines = [f"    .{name} = {number}," for name, number in fields.items()]
    return "\n".join(["static const decoding_info decoding = {", *lines, "};"])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
