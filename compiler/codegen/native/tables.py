"""Tables of model.c: what the runtime knows of a program, its entries and their tensors."""

from __future__ import annotations

import re

import onnx_ir as ir

from ...program import Decoding, DimRange, Program, dim_of
from ..isa import Isa
from .checks import checks_of
from .emit.base import Size
from .entry import EntryWriter, Finished
from .weights_file import WeightFile

FINGERPRINT = "FINGERPRINT"
"""Stands in the text for the bytes that are known once the weights are written."""


def declared(entry: EntryWriter, text: str, running: bool = False) -> list[str]:
    """Declarations of the named sizes that ``text`` uses; ``(void)`` where it uses none.

    ``running``: what follows from the inputs' contents as it is, else as much as it can be.
    """
    lines = []
    sizes = entry.sizes_of_entry
    for extent in sizes.extents:
        spelled, bound = sizes.size(extent.name), sizes.size(extent.bound)
        if re.search(rf"\b{spelled}\b", text):
            count, added = sizes.size(extent.count), sizes.size(extent.added)
            value = f"largest(run->tensors[{extent.lengths}], {count}) + {added}" if running else bound
            lines.append(f"    const int64_t {spelled} = {value};")
            text += f"\n{value}"
    used = [
        f"{spelled} = sizes[{i}]"
        for i, spelled in enumerate(entry.sizes_of_entry.spelled)
        if re.search(rf"\b{spelled}\b", text)
    ]
    return [f"    const int64_t {', '.join(used)};", *lines] if used else ["    (void)sizes;", *lines]


def facts(name: str, entry: EntryWriter, program: Program) -> str:
    """Sizes, tensors, checks and shapes of an entry."""
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
    numbers = int(value.dtype), len(value.shape), int(is_output), int(is_state)
    return f'    {{"{_escaped(str(value.name))}", {", ".join(map(str, numbers))}}},'


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
            *declared(entry, text), "    switch (tensor) {", text, "    }", "}", ""]  # fmt: skip


def table(program: Program, entries: dict[str, Finished], weights: WeightFile, isa: Isa) -> str:
    """What the runtime is given: all entries, decoding, the instruction set, the weight file."""
    lines = ["/* ---- the program ---- */", "", "static const entry_info entries[] = {"]
    for name, finished in entries.items():
        entry = finished.entry
        sizes, tensors = len(entry.sizes_of_entry.names), len(entry.inputs) + len(entry.outputs)
        checks = len(checks_of(entry, _decoding_of(name, program)))
        listed = [f"{name}_sizes" if sizes else "NULL", f"{name}_checks" if checks else "NULL"]
        lines += [
            f'    {{"{_escaped(name)}", {sizes}, {listed[0]}, {tensors}, {name}_tensors,',
            f"     {checks}, {listed[1]}, {name}_shape, {name}_arena, {name}_scratch, {name}_run}},",
        ]
    lines += ["};", ""]
    decoding = program.decoding
    if decoding is not None and not _is_driven(decoding, entries):
        decoding = None  # a stage of a decoder keeps its state, and is driven by who runs all stages
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


def _is_driven(decoding: Decoding, entries: dict[str, Finished]) -> bool:
    """Whether the entry with state has all that a caller drives it by."""
    entry = entries[decoding.entry].entry
    given = {v.name for v in (*entry.inputs, *entry.outputs)}
    return given >= {decoding.tokens, decoding.lengths, decoding.select, decoding.logits, decoding.next}


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
