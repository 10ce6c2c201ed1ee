"""Whole programs as emitted C: its text, what is refused, and that it computes what the IR says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.codegen.native.backend import NativeBackend
from miaotui.compiler.codegen.native.weights_file import HEADER, MAGIC
from miaotui.compiler.errors import CompileError, UnsupportedError
from miaotui.compiler.ir.builder import FLOAT16, INT64, Builder
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.options import Target
from miaotui.compiler.program import DimRange, Program
from support.decode_graphs import Layers
from support.native_programs import build, errors, lowered, opened
from support.random_graphs import grow


def block() -> Builder:
    """A residual block with an embedding that the output layer shares."""
    b = Builder()
    rng = np.random.default_rng(0)
    ids = b.input("ids", ("batch", "tokens"), INT64)
    table = b.weight("table", rng.standard_normal((40, 32)))
    x = b.op("Gather", table, ids, name="embed")
    scale = b.weight("scale", rng.standard_normal(32))
    normed = b.op("RMSNormalization", x, scale, axis=-1, epsilon=1e-6, name="norm")
    up = b.op("MatMul", normed, b.weight("up.weight", rng.standard_normal((32, 48))), name="up")
    down = b.op(
        "MatMul",
        b.op("Relu", up, name="act"),
        b.weight("down.weight", rng.standard_normal((48, 32))),
        name="down",
    )
    x = b.op("Add", x, down, name="residual")
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]), name="head"), "logits")
    return b


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, str]:
    """The block's program, its files, the text of its model.c."""
    program, folder = lowered(block().program()), tmp_path_factory.mktemp("block")
    return program, folder, build(program, folder)


def test_text_reads_from_top_to_bottom(built: tuple[Program, Path, str]) -> None:
    text = built[2]
    order = [
        "static const size_t at_table = 64;",
        "static const linear_spec linear_48x32_rms_relu_spec = {",
        ".columns = 32, .norm = NORM_RMS, .epsilon = ",
        "static void main_run(worker *w, call *run)",
        "const int64_t batch = run->sizes[0], tokens = run->sizes[1];",
        "const int64_t *const ids = run->tensors[0];",
        "/* embed (Gather) */",
        "linear_48x32_rms_relu(w, &(linear_args){",
        ".count = batch * tokens, .x = b0, .x_stride = 32, .norm_scale = floats(weights + at_scale), .y = b1",
        ".y_stride = 48, .weight = {weights + at_up_weight}});",
        "barrier(w);",
        ".y = b0, .y_stride = 32, .residual = b0,",
        ".y = logits, .y_stride = 40,",
        ".weight = {weights + at_table}});",
        "const program_info miaotui_program = {",
    ]
    place = 0
    for part in order:
        assert part in text[place:], part
        place = text.index(part, place)
    assert text.count("static const size_t") == 4  # the table is stored once
    assert max(map(len, text.splitlines())) <= 120


def test_weight_file_begins_with_its_header(built: tuple[Program, Path, str]) -> None:
    _, folder, text = built
    data = (folder / "model.weights").read_bytes()
    magic, version, _, size, fingerprint = HEADER.unpack(data[: HEADER.size])
    assert (magic, version, size) == (MAGIC, 1, len(data))
    assert ", ".join(f"0x{b:02x}" for b in fingerprint[:16]) in text


def test_same_program_gives_the_same_files(built: tuple[Program, Path, str], tmp_path: Path) -> None:
    build(lowered(block().program()), tmp_path)
    for file in ("model.c", "model.weights"):
        assert (built[1] / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_block_computes_what_the_graph_says(built: tuple[Program, Path, str], threads: int) -> None:
    program, folder, _ = built
    ids = np.arange(10).reshape(2, 5) % 40
    assert max(errors(program, folder, "main", {"ids": ids}, threads).values()) < 1e-5


def test_ids_outside_of_their_table_are_refused(built: tuple[Program, Path, str]) -> None:
    program, folder, _ = built
    with opened(program, folder) as runner, pytest.raises(CompileError, match="ids"):
        runner.run({"ids": np.array([[40]])})


def test_refuses_all_it_can_not_emit_at_once() -> None:
    b = Builder()
    x = b.input("x", ("batch", 8))
    half = b.input("half", ("batch", 8), FLOAT16)
    b.output(b.op("Relu", half, name="relu"), "y")
    b.output(b.op("Einsum", x, x, equation="bi,bj->bij", name="product"), "z")
    program = b.program()
    with pytest.raises(UnsupportedError) as caught:
        NativeBackend().build(program, Target(), Path(), None)  # type: ignore[arg-type]
    facts = [str(p) for p in caught.value.problems]
    assert any("relu" in f and "float16" in f for f in facts)
    assert any("product" in f and "no kernel" in f for f in facts)


def test_says_which_size_is_not_known() -> None:
    b = Builder()
    x = b.input("x", ("batch", 8))
    found = b.op("NonZero", x, name="found")
    y = b.op("Cast", found, to=1, name="cast")
    b.output(y, "y")
    node = next(n for n in b.model().graph if n.name == "cast")
    reason = NativeBackend().supports(node, Target())
    assert reason is not None and "is not known from the inputs'" in reason
    assert NativeBackend().supports(node, Target("cuda")) == "native code is for CPUs"


def test_what_nothing_reads_need_not_be_supported(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", ("batch", 8))
    b.op("NonZero", x, name="unread")
    b.output(b.op("Relu", x, name="relu"), "y")
    program = b.program()
    build(program, tmp_path)
    x_value = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    assert errors(program, tmp_path, "main", {"x": x_value}) == {"y": 0.0}


def test_outputs_that_are_views_are_written(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", ("batch", 4, 6))
    y = b.op("Relu", x)
    b.output(b.op("Transpose", y, perm=[0, 2, 1]), "turned")
    b.output(b.op("Reshape", y, b.weight("shape", np.array([0, -1]))), "flat")
    b.output(y, "same")
    b.output(b.op("Identity", x), "copy")
    program = b.program()
    build(program, tmp_path)
    x_value = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    assert set(errors(program, tmp_path, "main", {"x": x_value}).values()) == {0.0}


SANITIZED = "MIAOTUI_TEST_CFLAGS" in os.environ
"""Then the code of each program takes long to compile: there are fewer."""

SEEDS = range(4 if SANITIZED else 24)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    """Random models, each an entry of one program."""
    entries, program = {}, Program({}, {"batch": DimRange(1, 4)})
    for seed in SEEDS:
        model = lowered(grow(seed, 10)).main
        trial = Program({"main": model}, {"batch": DimRange(1, 4)})
        reasons = [NativeBackend().supports(n, Target()) for n in trial.main.graph]
        if not any(reasons):
            entries[f"grown_{seed}"] = model
    assert len(entries) > len(SEEDS) // 2
    program.entries.update(entries)
    folder = tmp_path_factory.mktemp("grown")
    build(program, folder)
    return program, folder


@pytest.mark.parametrize("threads", [1, 2])
def test_random_models_compute_what_the_graph_says(grown: tuple[Program, Path], threads: int) -> None:
    program, folder = grown
    for entry in program.entries:
        for batch in (1, 3):
            inputs = example_inputs(program, entry, {"batch": batch}, seed=batch)
            found = errors(program, folder, entry, inputs, threads)
            assert max(found.values()) < 1e-4, (entry, found)


LAYERS = {
    "llama": Layers(),
    "norms, scale, window": Layers(norms=True, scale=0.2, window=5, softcap=20.0),
    "interleaved, untied, packed": Layers(rotary="interleaved", tied=False, packed=True),
    "positions": Layers(rotary="none"),
}
if SANITIZED:
    LAYERS = {name: LAYERS[name] for name in ("norms, scale, window", "interleaved, untied, packed")}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_decoders_compute_what_the_graph_says(tmp_path: Path, layers: Layers) -> None:
    program = lowered(layers.program())
    build(program, tmp_path)
    for past, tokens, selected in (([0], 7, 1), ([3, 0, 9], 1, 1), ([2, 5], 4, 3)):
        feeds = layers.feeds(past, tokens, selected)
        found = errors(program, tmp_path, "decode", feeds, threads=2)
        assert max(found.values()) < 1e-4, (past, found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="preloads gcc's libraries")
def test_nothing_is_read_or_written_outside_of_memory() -> None:
    """This file again, its code compiled with the address and undefined-behaviour sanitizers."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(text.strip() for text in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "MIAOTUI_TEST_CFLAGS": "-fsanitize=address,undefined -Wno-error",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
