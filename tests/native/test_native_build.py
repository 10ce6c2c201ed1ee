"""Native code for every instruction set: the same tokens, no warning, a refusal where it can't run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from miaotui.compiler.codegen import isa as targets
from miaotui.compiler.codegen.isa import ISAS, can_run, isa_of
from miaotui.compiler.codegen.native import toolchain
from miaotui.compiler.codegen.native.library import BASELINE, CODE, WEIGHTS
from miaotui.compiler.codegen.native.toolchain import FLAGS, QUIET, Toolchain, find_toolchain
from miaotui.compiler.errors import CompileError, OptionError, ToolError
from miaotui.compiler.options import CPU_ARCHS, CompileOptions, Precision, Target
from miaotui.runtime.native import NativeRunner
from support import tiny_llama, toy_native
from support.quick_c import plain, quick

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "native_chat.c"
ZIG = Toolchain((sys.executable, "-m", "ziglang", "cc"))
X86 = [name for name, isa in ISAS.items() if isa.machine == "x86_64"]
FLOATS = ("x86-64", "x86-64-v3", "x86-64-v4")
"""The others add products of narrow numbers, which fp32 has none of."""

SPECIALISED = ("x86-64-v3", isa_of(Target("cpu")).name)
"""Their kernels are specialised, as a compile does it, which takes long; the others' read their specs."""

needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], Path]:
    """The variant's files in a precision, for this CPU."""
    made: dict[str, Path] = {}

    def folder(precision: Precision) -> Path:
        if precision not in made:
            made[precision] = tmp_path_factory.mktemp(precision) / "m"
            tiny_llama.written(made[precision], Target("cpu"), precision)
        return made[precision]

    return folder


# ---- instruction sets


def test_every_arch_that_options_take_has_flags() -> None:
    assert {"native", *ISAS} == set(CPU_ARCHS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "int4") for name in X86), *((name, "fp32") for name in FLOATS)]
)
def test_every_instruction_set_gives_the_same_tokens(
    llama: Callable[[Precision], Path], tmp_path: Path, name: str, precision: Precision
) -> None:
    if not can_run(ISAS[name]):
        pytest.skip(f"this CPU has no {', '.join(set(ISAS[name].needs) - targets.features())}")
    folder = llama(precision)
    expected = tiny_llama.clear_tokens(tiny_llama.model(folder, precision), precision)
    tiny_llama.emitted(tmp_path, Target("cpu", name), precision)
    flags = quick() if name in SPECIALISED else plain()
    tiny_llama.compiled(tmp_path, ISAS[name], find_toolchain(), (*flags, "-Werror"))
    model = tiny_llama.model(tmp_path, precision)
    alone = tiny_llama.tokens(model, precision, threads=1)
    assert alone[: len(expected)] == expected
    for threads in (2, 3):
        assert tiny_llama.tokens(model, precision, threads=threads) == alone


@needs_zig
@pytest.mark.slow
def test_clang_gives_the_same_tokens_without_a_warning(
    llama: Callable[[Precision], Path], tmp_path: Path
) -> None:
    folder = llama("int4")
    expected = tiny_llama.clear_tokens(tiny_llama.model(folder, "int4"), "int4")
    tiny_llama.emitted(tmp_path, Target("cpu"), "int4")
    tiny_llama.compiled(tmp_path, isa_of(Target("cpu")), ZIG, (*plain(ZIG), "-Werror"))
    assert tiny_llama.tokens(tiny_llama.model(tmp_path, "int4"), "int4")[: len(expected)] == expected


def _on_one_cpu() -> None:
    """Workers that wait for each other would be emulated spinning."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@needs_zig
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 (qemu-user) is not installed")
def test_aarch64_gives_the_same_tokens_under_qemu(llama: Callable[[Precision], Path], tmp_path: Path) -> None:
    """The C example, all in one static program: what runs it needs no aarch64 libraries."""
    folder, program = tmp_path / "m", tmp_path / "native_chat"
    tiny_llama.emitted(folder, Target.parse("cpu:armv8.2-a"), "int4")
    cpu = f"-mcpu={ISAS['armv8.2-a'].zig}"
    sources = [str(folder / CODE), *(str(folder / "kernels" / name) for name in BASELINE), str(EXAMPLE)]
    command = [
        *ZIG.command,
        "-target",
        "aarch64-linux-musl",
        "-static",
        cpu,
        *FLAGS,
        *QUIET,
        "-O1",
        "-Werror",
    ]
    subprocess.run([*command, f"-I{folder}/include", *sources, "-o", str(program)], check=True, timeout=600)
    expected = tiny_llama.clear_tokens(tiny_llama.model(llama("int4"), "int4"), "int4")
    run = ["qemu-aarch64", "-cpu", "max", str(program), str(folder / WEIGHTS), "4"]
    prompt = " ".join(map(str, tiny_llama.PROMPT))
    done = subprocess.run(
        run, input=prompt, capture_output=True, text=True, timeout=300, check=False, preexec_fn=_on_one_cpu
    )
    found = [int(word) for word in done.stdout.split()]
    assert len(found) == 4 and found == expected[:4], done.stderr
    weak = [*run[:1], "-cpu", "cortex-a53", *run[3:]]
    done = subprocess.run(weak, input=prompt, capture_output=True, text=True, timeout=300, check=False)
    assert (
        done.returncode == 1 and "was built for armv8.2-a and needs FP16, this CPU has nothing" in done.stderr
    )


@needs_zig
def test_a_library_for_aarch64_is_refused_in_a_sentence(tmp_path: Path) -> None:
    if can_run(ISAS["armv8.2-a"]):
        pytest.skip("this CPU runs it")
    folder = toy_native.build(tmp_path, toolchain=find_toolchain(ISAS["armv8.2-a"]), isa=ISAS["armv8.2-a"])
    with pytest.raises(ToolError, match="was built for aarch64, this machine is x86_64"):
        NativeRunner(toy_native.model(folder))


def test_a_cpu_without_the_instructions_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy_native.build(tmp_path, ('-DNEEDS="AVX2"',))
    monkeypatch.setenv(targets.WITHOUT, "FMA,AVX2")
    with pytest.raises(
        ToolError, match=r"was built for toy and needs AVX2, this CPU has .*; compile the model"
    ):
        NativeRunner(toy_native.model(folder))
    monkeypatch.setenv(targets.WITHOUT, "AVX2X")
    if "AVX2" in targets.features():
        NativeRunner(toy_native.model(folder)).close()


def test_python_and_c_see_the_same_features(tmp_path: Path) -> None:
    folder = toy_native.build(tmp_path, ('-DNEEDS="NOTHING"',))
    with pytest.raises(ToolError) as refusal:
        NativeRunner(toy_native.model(folder))
    listed = str(refusal.value).split("this CPU has ")[1].split(";")[0]
    known = {feature for isa in ISAS.values() for feature in isa.needs}
    assert set(listed.split(", ")) & known == targets.features()


def test_native_is_the_best_that_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_found", lambda: frozenset(ISAS["x86-64-v4-bf16"].needs) | {"AVX-VNNI"})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for without, name in (
        ("", "x86-64-v4-bf16"),
        ("AVX512-BF16", "x86-64-v4-vnni"),
        ("AVX512-VNNI", "x86-64-v4"),
        ("AVX512F", "x86-64-v3-vnni"),
        ("AVX512F,AVX-VNNI", "x86-64-v3"),
        ("FMA", "x86-64"),
    ):
        monkeypatch.setenv(targets.WITHOUT, without)
        assert isa_of(Target("cpu")).name == isa_of(Target("cpu", "native")).name == name
    assert isa_of(Target.parse("cpu:armv8.2-a")).machine == "aarch64"
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(OptionError, match=r"s390x.*cpu:x86-64"):
        isa_of(Target("cpu"))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"target": Target("cpu", "x86-64-v3"), "backend": "ort"}, "ONNX Runtime chooses its kernels"),
        ({"target": Target("cuda"), "backend": "native"}, "native writes code for CPUs"),
    ],
)
def test_targets_that_a_backend_does_not_have(options: dict[str, object], fact: str) -> None:
    with pytest.raises(OptionError, match=fact):
        CompileOptions(**options)  # type: ignore[arg-type]


def test_unknown_instruction_sets_are_told_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"cpu:avx9.*x86-64-v3, x86-64, armv8\.2-a"):
        Target.parse("cpu:avx9")


# ---- the compiler


def without_compilers(monkeypatch: pytest.MonkeyPatch, *, zig: bool) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(toolchain, "find_spec", lambda name: object() if zig else None)


def test_no_compiler_is_an_error_that_names_two(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compilers(monkeypatch, zig=False)
    with pytest.raises(ToolError, match=r"none was found; apt install gcc, or pip install ziglang"):
        find_toolchain()
    with pytest.raises(ToolError, match=r"compiles for aarch64; pip install ziglang"):
        find_toolchain(ISAS["armv8.2-a"])


def test_zig_serves_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compilers(monkeypatch, zig=True)
    assert find_toolchain().is_zig and find_toolchain(ISAS["armv8.2-a"]).is_zig


def test_cc_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    assert find_toolchain().command == (sys.executable, "-m", "ziglang", "cc")


def test_what_the_compiler_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("int x = y;")
    with pytest.raises(CompileError, match=r"refused the emitted code.*y"):
        find_toolchain().library(ISAS["x86-64"], tmp_path / "bad.so", [tmp_path / "bad.c"])


# ---- sanitizers


def sanitized() -> dict[str, str]:
    """The environment of a Python whose libraries may be sanitized; skips where gcc has no runtime for it."""
    compiler = find_toolchain()
    found = [
        subprocess.run(
            [*compiler.command, f"-print-file-name={name}"], capture_output=True, text=True, check=False
        )
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    paths = [done.stdout.strip() for done in found]
    if compiler.is_zig or not all(Path(path).is_absolute() for path in paths):
        pytest.skip("the C compiler has no sanitizers to preload")
    # The C++ runtime first: the sanitizer must see who throws before a library does.
    options = {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0", "UBSAN_OPTIONS": "halt_on_error=1"}
    return {**os.environ, **options, "LD_PRELOAD": ":".join(paths), "OMP_NUM_THREADS": "1"}


SANITIZE = " ".join(("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", *plain()))


@pytest.mark.slow
def test_the_runtime_passes_its_tests_under_sanitizers() -> None:
    environment = sanitized() | {toy_native.FLAGS: SANITIZE}
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("native_runtime", "weight_file")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_model_runs_under_sanitizers(
    llama: Callable[[Precision], Path], tmp_path: Path, precision: Precision
) -> None:
    environment = sanitized()
    folder = llama(precision)
    isa = isa_of(Target("cpu"))
    runtime = [folder / "kernels" / name for name in BASELINE]
    program = tmp_path / "chat"
    compiler = find_toolchain()
    flags = [*FLAGS, *QUIET, *SANITIZE.split(), *isa.flags, f"-I{folder}/include"]
    sources = [folder / CODE, *runtime, EXAMPLE]
    subprocess.run(
        [*compiler.command, *flags, *map(str, sources), "-o", str(program), "-lm", "-lpthread"],
        check=True, timeout=900,
    )  # fmt: skip
    del environment["LD_PRELOAD"]  # it is in the program
    expected = tiny_llama.clear_tokens(tiny_llama.model(folder, precision), precision)
    done = subprocess.run(
        [str(program), str(folder / WEIGHTS), "24"], input=" ".join(map(str, tiny_llama.PROMPT)),
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    found = [int(word) for word in done.stdout.split()]
    assert len(found) == 24 and found[: len(expected)] == expected, done.stderr[-3000:]


# ---- standing alone


@pytest.mark.slow
def test_the_c_example_is_built_by_its_own_line_and_writes_the_same_tokens(
    llama: Callable[[Precision], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model.miaotui" / "variants" / "cpu-native"
    shutil.copytree(llama("int4"), folder)
    (tmp_path / "examples").mkdir()
    shutil.copyfile(EXAMPLE, tmp_path / "examples" / EXAMPLE.name)
    [line] = [text for text in EXAMPLE.read_text().splitlines() if " cc -O2" in text]
    script = f"M=model.miaotui/variants/cpu-native\n{line.removeprefix(' *')}"
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True, timeout=120)

    def run(*arguments: str, stdin: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "native_chat"), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)

    expected = [str(t) for t in tiny_llama.tokens(tiny_llama.model(folder, "int4"), "int4")]
    weights, prompt = str(folder / WEIGHTS), " ".join(map(str, tiny_llama.PROMPT))
    assert run(weights, "24", stdin=prompt).stdout.split() == expected
    assert run(weights, "24", expected[3], stdin=prompt).stdout.split() == expected[:3]
    assert "is 300, outside 0..299" in run(weights, "4", stdin="300").stderr
    assert "token ids" in run(weights, "4", stdin="hello").stderr
    assert "No such file" in run("gone", "4", stdin="1").stderr
    assert run(stdin="").returncode == 2
    full = run(weights, "5000", stdin=prompt)  # it makes room for 4096 tokens
    assert full.returncode == 0 and len(full.stdout.split()) == 4096 - len(tiny_llama.PROMPT) + 1


@needs_zig
def test_the_header_is_good_c_and_cpp(tmp_path: Path) -> None:
    include = toolchain.KERNELS.with_name("include")
    for name, driver in (("use.c", "cc"), ("use.cpp", "c++")):
        source = tmp_path / name
        source.write_text('#include "model.h"\nint main(void) { return miaotui_entry("main"); }\n')
        command = [*ZIG.command[:-1], driver, "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{include}"]
        subprocess.run([*command, "-c", str(source), "-o", f"{source}.o"], check=True, timeout=300)
