"""Weights of few bits on SmolLM2: perplexity and divergence from the float32 source, beside llama.cpp's."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import interleave as shared
import miaotui
import numpy as np
import onnx_ir as ir
from bench_decode import hugging_face_folder
from corpus import WINDOW, documentation, windows
from engines import LlamaCpp, requantized
from miaotui.compiler.draft import Draft
from miaotui.compiler.ir.quantized import BlockedWeight, blocked_weight
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.driver.calibration import measured_moments
from miaotui.driver.samples import samples_of
from miaotui.driver.workbench import SOURCE_BACKEND, Workbench
from miaotui.frontends.load import load
from miaotui.passes.base import Pass, PassContext, parse_pass_spec
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.logits import is_logits
from miaotui.passes.moments import Moment, Moments
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import all_passes
from miaotui.passes.raising import RAISING
from miaotui.runtime.conditions import conditions
from perplexity import Array, Logits, Score, Scores, Source

COUNT, QUICK = 40, 8
"""Windows of WINDOW tokens: 20,440 predictions, and 4,088."""
SMOOTH = "smooth-activations{bits=4}"
TARGETS = {"int8": 0.003, "of RTN": 0.6}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to round: the passes, what they are calibrated on; ``grid``: it can express the source's."""

    name: str
    passes: tuple[str, ...]
    calibration: str = "documentation"
    grid: bool = False


def int4(options: str) -> str:
    return f"quantize-weights{{bits=4,{options}}}"


CASES = (
    Case("int8 32", ("quantize-weights{bits=8}",)),
    Case("int4 32 RTN", (int4("method=rtn"),)),
    Case("int4 32 GPTQ", (int4("method=gptq"),)),
    Case("int4 32 AWQ + GPTQ", (SMOOTH, int4("method=gptq"))),
    Case("int4 32 search", (int4("method=search"),)),
    Case("int4 32 AWQ", (SMOOTH, int4("method=rtn"))),
    Case("int4 32 GPTQ as published", (int4("method=gptq,sweeps=0,ordered=false"),)),
    Case("int4 32 AWQ + GPTQ, sample text", (SMOOTH, int4("method=gptq")), "sample"),
    Case("int4 32 AWQ + GPTQ, output layer and table too", (SMOOTH, int4("output=4,table=4"))),
    Case("int4 32 symmetric RTN", (int4("scheme=symmetric,method=rtn"),)),
    Case("int4 32 symmetric AWQ + GPTQ", (SMOOTH, int4("scheme=symmetric,method=gptq"))),
    Case("int4 64 RTN", (int4("block=64,method=rtn"),)),
    Case("int4 64 AWQ + GPTQ", (SMOOTH, int4("block=64,method=gptq"))),
    Case("int4 128 RTN", (int4("block=128,method=rtn"),)),
    Case("int4 128 AWQ + GPTQ", (SMOOTH, int4("block=128,method=gptq"))),
    Case("int4 32 offset RTN", (int4("scheme=offset,method=rtn"),), grid=True),
    Case("int4 64 offset RTN", (int4("block=64,scheme=offset,method=rtn"),)),
    Case("int4 64 offset AWQ + GPTQ", (SMOOTH, int4("block=64,scheme=offset,method=gptq"))),
)
GGUF = "the GGUF file's own blocks, native code"
PEERS = ("Q8_0", "Q4_K_M", "Q4_0")


def rounded(program: Program, specs: Sequence[str], moments: Moments) -> tuple[Program, dict[str, Any]]:
    """The program after ``specs`` with its blocked weights as float32 again; bits and megabytes they take."""
    copy = program.clone()
    steps: list[Pass] = []
    for spec in specs:
        name, options = parse_pass_spec(spec)
        steps.append(all_passes()[name].with_options(options))
    start = time.perf_counter()
    results = run_pipeline(copy, steps, PassContext(moments=moments))
    seconds = time.perf_counter() - start
    stored, seen = 0.0, dict[int, ir.TensorProtocol]()
    for node in reversed(tuple(copy.main.graph)):  # an offset is added behind what would be a weight too
        weight = blocked_weight(node.outputs[0])
        if weight is None or id(weight.data) in seen:
            continue
        seen[id(weight.data)] = weight.data
        stored += _bits(weight)
        value = node.outputs[0]
        dense = ir.Value(name=f"{value.name}.dense", type=value.type, shape=value.shape)
        dense.const_value = ir.Tensor(weight.numpy())
        copy.main.graph.register_initializer(dense)
        ir.convenience.replace_all_uses_with(value, dense)
    count = sum(data.size for data in seen.values())
    run_pipeline(copy, CLEANUP, PassContext())
    notes = [n.text for n in results[-1][1].hits]
    errors = [float(text.rpartition(" ")[2]) for text in notes if "relative output error" in text]
    return copy, {
        "bits": stored / count,
        "mb": stored / 8e6,
        "output_error": float(np.median(errors)) if errors else None,
        "seconds": seconds,
    }


def _bits(weight: BlockedWeight) -> float:
    """As native code packs it: scales and offsets of 16 bits where those hold them, zero points of 8."""
    total = float(weight.data.size * weight.bits)
    for part in (weight.scale, weight.offset):
        if part is not None:
            array = part.numpy()
            total += part.size * (16 if (array.astype(np.float16) == array).all() else 32)
    return total + (0 if weight.zero_point is None else 8 * weight.zero_point.size)


@contextmanager
def session(program: Program, taps: Sequence[str] = (), threads: int | None = None) -> Iterator[Any]:
    """A runner of the main entry under ONNX Runtime, as it is: in float32."""
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "draft")) as draft:
        built = Workbench(draft, SOURCE_BACKEND, Target("cpu")).source(program)
        with built.open(threads, taps=taps) as runner:
            yield runner


class Imported:
    """The source as passes see it when they round weights; imported once, if it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def program(self) -> Program:
        program = load(self.folder, CompileOptions()).program
        program.entries = {"main": program.main}
        run_pipeline(program, [*CLEANUP, *RAISING, *CLEANUP], PassContext())
        return program


def source_of(work: Path, imported: Imported, threads: int | None) -> Source:
    """The evaluation text and the source's last hidden states on it, kept in ``work``."""
    ids = windows(documentation()[1], work / "smollm2" / "tokenizer.json", COUNT)
    file = work / "source.npz"
    if not file.is_file():
        print("source", file=sys.stderr)
        graph = imported.program.main.graph
        node = next(n for n in graph if n.op_type == "MatMul" and is_logits(n.outputs[0]))
        hidden, weight = node.inputs[:2]
        assert hidden is not None and weight is not None
        turn = weight.producer()
        stored = weight if turn is None else turn.inputs[0]
        assert stored is not None and stored.const_value is not None
        head = stored.const_value.numpy()
        with session(imported.program, [str(hidden.name)], threads) as runner:
            states = [runner.run({"input_ids": row[None]})[str(hidden.name)][0] for row in ids]
        np.savez(file, ids=ids, hidden=np.stack(states), head=head.T if turn is None else head)
    found = np.load(file)
    if not np.array_equal(found["ids"], ids):
        raise SystemExit(f"{work} is of another text: remove it")
    return Source(ids, found["hidden"], found["head"])


def calibrated(work: Path, program: Program, text: str) -> Moments:
    """Second moments of activations, kept in ``work``.

    ``text``: ``documentation``, the half that is not evaluated on; ``sample``, what the compiler carries.
    """
    calibration = work / "calibration.txt"
    calibration.write_text(documentation()[0], encoding="utf-8")
    file = work / f"moments-{text}.npz"
    if not file.is_file():
        print(f"calibrate on the {text}", file=sys.stderr)
        samples = samples_of(program, str(calibration) if text == "documentation" else None)
        measured = measured_moments(program, samples.inputs)
        rows = np.array([moment.rows for moment in measured.values()])
        arrays: dict[str, Any] = {name: moment.matrix for name, moment in measured.items()}
        np.savez(file, rows=rows, **arrays)
    held = np.load(file)
    names = [name for name in held.files if name != "rows"]
    return {n: Moment(held[n], int(r)) for n, r in zip(names, held["rows"], strict=True)}


def float32_gguf(work: Path, source: Path) -> Path:
    """``source``, a GGUF file, with all tensors dequantized to float32."""
    import gguf

    path = work / "f32.gguf"
    if path.is_file():
        return path
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def peer_facts(path: Path) -> dict[str, Any]:
    """Bits of a weight and megabytes of a GGUF file's tensors of two dimensions, and their types."""
    import gguf

    found = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1]
    size, count = sum(int(t.n_bytes) for t in found), sum(int(t.n_elements) for t in found)
    types: dict[str, int] = {}
    for tensor in found:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return {"bits": 8 * size / count, "mb": size / 1e6, "types": types}


def native(work: Path, source: Path, case: Case | None) -> Logits:
    """What the compiled executable's native code gives, its 8-bit activations included.

    ``case`` None: of a GGUF file with the blocks that it has.
    """
    folder = work / f"native-{'-'.join(case.name.split()) if case else source.stem}"
    if not (folder / "manifest.json").is_file():
        settings: dict[str, Any] = {"backend": "native", "timing": 0.0, "keep_source": False}
        if case is not None:
            smooth = any(spec.startswith("smooth") for spec in case.passes)
            settings |= {"precision": "int8" if case.name.startswith("int8") else "int4"}
            settings |= {"enable": case.passes, "disable": () if smooth else ("smooth-activations",)}
            settings |= {"calib": str(work / "calibration.txt")}
        miaotui.compile(source, output=folder, **settings).close()
    executable = miaotui.open(folder)

    def logits(ids: Array) -> Array:
        found: Array = executable.run({"input_ids": ids[None]})["logits"][0]
        return found

    return logits


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    bits: float
    mb: float
    score: Score
    output_error: float | None = None
    note: str = ""


def table(rows: Sequence[Row]) -> list[str]:
    lines = ["| weights | bits | MB | perplexity | change | mean KL | top-1 | output error | |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        s, error = r.score, "" if r.output_error is None else f"{r.output_error:.1e}"
        lines.append(
            f"| {r.name} | {r.bits:.2f} | {r.mb:.0f} | {s.perplexity:.3f} | {s.change:+.2%} | {s.kl:.4f} "
            f"| {s.top1:.3f} | {error} | {r.note} |"
        )
    return lines


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether the targets hold, in figures."""
    change = {r.name: r.score.change for r in rows}
    lines = []
    if "int8 32" in change:
        lines.append(f"int8: {change['int8 32']:+.3%} against at most {TARGETS['int8']:.1%}.")
    plain = change.get("int4 32 RTN")
    for name in ("int4 32 GPTQ", "int4 32 AWQ + GPTQ", "int4 32 offset RTN"):
        if plain and name in change:
            told = (
                f"{name}: {change[name] / plain:.0%} of RTN's change against at most {TARGETS['of RTN']:.0%}"
            )
            k = change.get("llama.cpp Q4_K_M")
            lines.append(
                f"{told}." if k is None else f"{told}; Q4_K_M's is {k:+.2%}, this {change[name]:+.2%}."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/miaotui-bench-quantization"), help="kept between runs"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} windows of {COUNT}")
    parser.add_argument("--only", default="", help="names that contain one of these, with commas")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--confirm", default="int4 32 AWQ + GPTQ", help="the case to compile to native code")
    options = parser.parse_args()
    work, threads = options.work, options.threads
    work.mkdir(parents=True, exist_ok=True)
    # every fifth window first: the quick ones are among all
    chosen = sorted(range(COUNT), key=lambda w: (w % (COUNT // QUICK) != 0, w))[
        : QUICK if options.quick else None
    ]
    scores = Scores(work / "scores.json")
    folder = hugging_face_folder(work / "smollm2")
    imported = Imported(folder)
    source = source_of(work, imported, threads)

    def wanted(name: str) -> bool:
        return any(part in name for part in options.only.split(",")) and bool(scores.missing(name, chosen))

    for case in (c for c in CASES if wanted(c.name)):
        print(case.name, file=sys.stderr)
        moments = calibrated(work, imported.program, case.calibration)
        made, facts = rounded(imported.program, case.passes, moments)
        scores.keep(case.name, facts)
        with session(made, threads=threads) as runner:
            scores.measure(case.name, _first(runner), source, chosen)
        del made, runner
        gc.collect()
        print(table(rows_of(scores, chosen, [case.name]))[-1], flush=True)
    for kind in PEERS:
        name = f"llama.cpp {kind}"
        if wanted(name):
            path = requantized(work, float32_gguf(work, smollm2()), kind)
            if path is None:
                continue
            scores.keep(name, peer_facts(path))
            engine = LlamaCpp(path, threads or 1, WINDOW)
            scores.measure(name, lambda ids, e=engine: e.logits(ids.tolist()), source, chosen)  # type: ignore[misc]
            print(table(rows_of(scores, chosen, [name]))[-1], flush=True)
    if wanted(GGUF):
        scores.keep(GGUF, peer_facts(smollm2()))
        scores.measure(GGUF, native(work, smollm2(), None), source, chosen)
        print(table(rows_of(scores, chosen, [GGUF]))[-1], flush=True)
    for case in (c for c in CASES if c.name == options.confirm):
        name = f"{case.name}, native code"
        if wanted(name):
            scores.keep(name, scores.facts(case.name))
            scores.measure(name, native(work, folder, case), source, chosen)
            print(table(rows_of(scores, chosen, [name]))[-1], flush=True)
    report(scores, chosen, options.confirm)


def smollm2() -> Path:
    from support.models import smollm2_gguf

    return smollm2_gguf()


def _first(runner: Any) -> Logits:
    def logits(ids: Array) -> Array:
        found: Array = next(iter(runner.run({"input_ids": ids[None]}).values()))[0]
        return found

    return logits


def rows_of(scores: Scores, chosen: Sequence[int], names: Sequence[str]) -> list[Row]:
    """Those of ``names`` that were measured on all the windows, or with fewer, which the note says."""
    rows = []
    for name in names:
        found, facts = scores.windows(name, chosen), scores.facts(name)
        if not found:
            continue
        case = next((c for c in CASES if c.name == name), None)
        note = "can express the source's own grid" if case is not None and case.grid else ""
        if "types" in facts:
            note = ", ".join(f"{count} {kind}" for kind, count in facts["types"].items())
        if len(found) < COUNT:
            note = f"{note}{'; ' if note else ''}{sum(w.tokens for w in found):,} tokens only"
        rows.append(Row(name, facts["bits"], facts["mb"], Score.of(found), facts.get("output_error"), note))
    return rows


def report(scores: Scores, chosen: Sequence[int], confirmed: str) -> None:
    """Write the table."""
    peers = [f"llama.cpp {kind}" for kind in PEERS]
    ours = [*(c.name for c in CASES), f"{confirmed}, native code", GGUF]
    rows = rows_of(scores, chosen, [*ours, *peers])
    at = conditions(Target())
    most, source = max(r.score.tokens for r in rows), rows[0].score.source
    lines = [
        "# SmolLM2-135M with weights of few bits, against its float32 source", "",
        f"{at.cpu}. Up to {most:,} predicted tokens of Python's documentation in windows of {WINDOW}; "
        "calibrated on 8,192 tokens of other topics of it, without a paragraph in common (`sample text`: on "
        f"the few hundred that the compiler carries). Perplexity of the source: {source:.3f}.", "",
        "Source: the package's GGUF file, dequantized. Its matrices lie on Q4_1's grid, a scale and a float "
        "offset for every 32 columns: a format that has those finds that grid again and loses nothing, which "
        "says nothing of how well it rounds other models. Integer zero points, symmetric codes and blocks of "
        "64 and 128 can't express it. Where a width is no multiple of the block, half of it is taken. The "
        "embedding table, which is the output layer too, has 8 bits unless the row says otherwise. AWQ: "
        "channels scaled by a searched exponent. GPTQ: columns in order of their activations' power, then "
        "two sweeps of coordinate descent over codes and scales; `as published` has neither.", "",
        "Ours: rounded weights multiplied in float32; `native code`: the compiled executable, with 8-bit "
        "activations. llama.cpp: `llama_model_quantize` of the same weights in float32, without an "
        "importance matrix, its own logits, with 8-bit activations; with 576 columns its k-quants give way "
        "to other types. Bits and MB of all matrices. Output error: median over weights of the mean squared "
        "error of their outputs, as a share of their mean square, on the calibration text.", "",
        *table(rows), "",
        *(f"- {line}" for line in verdicts(rows)),
    ]  # fmt: skip
    shared.RESULTS.mkdir(exist_ok=True)
    (shared.RESULTS / "quantization.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"conditions": asdict(at), "rows": [asdict(r) | {"change": r.score.change} for r in rows]}
    (shared.RESULTS / "quantization.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
