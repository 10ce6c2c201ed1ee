"""C for tests: flags that compile fast, and nothing compiled twice in one run, whichever worker needs it."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from miaotui.compiler.codegen.native.toolchain import Toolchain, find_toolchain

Run = Callable[[Toolchain, Sequence[str]], "subprocess.CompletedProcess[str]"]


@functools.cache
def quick(tools: Toolchain | None = None) -> tuple[str, ...]:
    """Flags of a compiler for tests of what code computes, not of how fast; by default the one compiles take.

    gcc drops the branches of a kernel that its spec rules out by value ranges, which -O1 does not look at:
    with them -Og takes a third of the time. clang, which knows neither, takes -O1.
    """
    compiler = tools or find_toolchain()
    is_clang = compiler.is_zig or "clang" in compiler.version()
    return ("-O1",) if is_clang else ("-Og", "-ftree-vrp")


@functools.cache
def plain(tools: Toolchain | None = None) -> tuple[str, ...]:
    """The same for code that is not specialised: a kernel is compiled once and reads its spec as it runs.

    What it computes and where it reads and writes is the same C; a program takes a quarter of the time, under
    sanitizers a fifth. gcc, which follows fewer values at -Og, guesses wrong about what has been set.
    """
    level, *others = quick(tools)
    return (level, "-DINLINE=static", "-DUNROLL=", *(["-Wno-maybe-uninitialized"] if others else []))


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """What the C compiler makes is kept in ``folder`` by command and content, and taken from there.

    Several processes may share it. What the compiler refuses is refused again.
    """
    run = _without_preloaded(Toolchain._run)

    def kept(toolchain: Toolchain, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        output = _output(arguments)
        if output is None:
            return run(toolchain, arguments)
        held = folder / _key(toolchain, arguments)
        if held.exists():
            shutil.copyfile(held, output)
            return subprocess.CompletedProcess([*toolchain.command, *arguments], 0, "", "")
        done = run(toolchain, arguments)
        _keep(output, held)
        return done

    with patch.object(Toolchain, "_run", kept):
        yield


def _without_preloaded(run: Run) -> Run:
    """The compiler does without the sanitizers that a Python was started with: they slow it down."""

    def plain(toolchain: Toolchain, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        with patch.dict(os.environ):
            os.environ.pop("LD_PRELOAD", None)
            return run(toolchain, arguments)

    return plain


def _output(arguments: Sequence[str]) -> Path | None:
    return Path(arguments[arguments.index("-o") + 1]) if "-o" in arguments else None


def _key(toolchain: Toolchain, arguments: Sequence[str]) -> str:
    """Of all that the output depends on: flags, sources, headers beside them or where flags point."""
    digest = hashlib.sha256(repr(toolchain.command).encode())
    place = arguments.index("-o") + 1
    for index, argument in enumerate(arguments):
        if index == place:
            continue
        if argument.startswith("-I"):
            digest.update(_headers(Path(argument[2:])))
        elif (source := Path(argument)).is_file():
            digest.update(source.suffix.encode() + source.read_bytes())
            if source.suffix == ".c":
                digest.update(_headers(source.parent))
        else:
            digest.update(argument.encode() + b"\0")
    return digest.hexdigest()


def _headers(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.h")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.digest()


def _keep(output: Path, held: Path) -> None:
    """Whole or not at all: another worker may look at any time."""
    held.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=held.parent)
    os.close(handle)
    shutil.copyfile(output, name)
    Path(name).replace(held)
