"""The hand-written native model of ``tests/native/toy_model.c``: built, its weights, what it computes."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.isa import ISAS, Isa
from miaotui.compiler.codegen.native.library import BASELINE, CODE, LIBRARY, WEIGHTS
from miaotui.compiler.codegen.native.toolchain import KERNELS, Toolchain, find_toolchain
from miaotui.compiler.codegen.native.weights_file import HEADER, MAGIC, VERSION
from miaotui.compiler.manifest import Entry
from miaotui.compiler.program import Decoding, StateTensor, TensorSpec
from miaotui.runtime.native import NativeModel

VOCABULARY, CONTEXT = 32, 1000
TABLE = np.arange(8, dtype=np.float32) * 10
FINGERPRINT = b"toy".ljust(32, b"\0")
FLAGS = "TOY_NATIVE_FLAGS"
"""Environment variable: further flags for the C compiler."""

SOURCE = Path(__file__).parents[1] / "native" / "toy_model.c"

DECODING = Decoding(VOCABULARY, (StateTensor("past_key_0", "present_key_0"),), CONTEXT)

_INT, _FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
_PAST = ("batch", 1, "capacity", 1)
MAIN = Entry(
    (TensorSpec("x", _FLOAT, ("n",)), TensorSpec("index", _INT, ("n",))), (TensorSpec("y", _FLOAT, ("n",)),)
)
DECODE = Entry(
    (
        TensorSpec("input_ids", _INT, ("batch", "tokens")),
        TensorSpec("past_lengths", _INT, ("batch",)),
        TensorSpec("select", _INT, ("batch", "selected")),
        TensorSpec("past_key_0", _FLOAT, _PAST),
    ),
    (
        TensorSpec("logits", _FLOAT, ("batch", "selected", VOCABULARY)),
        TensorSpec("next", _INT, ("batch", "selected")),
        TensorSpec("present_key_0", _FLOAT, _PAST),
    ),
)


def header(size: int = 64 + TABLE.nbytes, fingerprint: bytes = FINGERPRINT) -> bytes:
    """The first 64 bytes of its weight file."""
    return HEADER.pack(MAGIC, VERSION, 0, size, fingerprint)


def build(
    folder: Path, flags: Sequence[str] = (), toolchain: Toolchain | None = None, isa: Isa = ISAS["x86-64"]
) -> Path:
    """Compile it into ``folder`` and write its weights; ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SOURCE, folder / CODE)
    shutil.copytree(KERNELS, folder / "kernels", dirs_exist_ok=True)
    shutil.copytree(KERNELS.with_name("include"), folder / "include", dirs_exist_ok=True)
    runtime = [folder / "kernels" / name for name in BASELINE]
    given = os.environ.get(FLAGS, "").split()
    compiler = find_toolchain(isa) if toolchain is None else toolchain
    compiler.library(isa, folder / LIBRARY, [folder / CODE], runtime, ("-Werror", *given, *flags))
    (folder / WEIGHTS).write_bytes(header() + TABLE.tobytes())
    return folder


@functools.cache
def built() -> Path:
    """A folder that holds it, made once; leave it as it is."""
    return build(Path(tempfile.mkdtemp(prefix="toy-native-")))


def model(folder: Path, entry: str = "main") -> NativeModel:
    """What a runner of it is opened from."""
    state = {"past_key_0": "present_key_0"} if entry == "decode" else {}
    signature = DECODE if entry == "decode" else MAIN
    return NativeModel(folder / LIBRARY, folder / WEIGHTS, signature, entry, state)


def following(ids: Sequence[int]) -> int:
    """The likeliest token behind ``ids``."""
    return (7 * sum(ids) + len(ids)) % VOCABULARY


def written(ids: Sequence[int], count: int) -> list[int]:
    """``count`` tokens written greedily behind ``ids``."""
    text = list(ids)
    for _ in range(count):
        text.append(following(text))
    return text[len(ids) :]
