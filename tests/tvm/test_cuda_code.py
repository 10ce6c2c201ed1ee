"""Device code by nvcc on a machine without a GPU: what is in the library, and what is said without nvcc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from miaotui.compiler.codegen.tvm import cuda, cuda_toolkit
from miaotui.compiler.codegen.tvm.cuda_listing import (
    DeviceKernel,
    device_kernels,
    fatbins_in,
    instructions,
    with_dynamic,
)
from miaotui.compiler.codegen.tvm.kernels import cuda_attention, cuda_matmul
from miaotui.compiler.codegen.tvm.kernels.cuda_attention import Heads
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.errors import CompileError, ToolError
from miaotui.compiler.options import Target

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

COMPILE = """
import sys
from pathlib import Path
from test_cuda_code import compiled
for arch in sys.argv[2:]:
    for kernel in compiled(arch, Path(sys.argv[1], arch + ".so")):
        print(kernel)
"""


def compiled(arch: str, path: Path) -> list[DeviceKernel]:
    """A product and an attention as a library at ``path``."""
    tvm = require_tvm()
    kernels = [
        cuda_matmul.matmul(None, 64, 64, "float16", tiles=cuda_matmul.MIDDLE),
        cuda_attention.attention(Heads(2, 2, 32, 32), "bfloat16", causal=True),
    ]
    target, module = Target("cuda", arch), tvm.IRModule({k.name: k.function for k in kernels})
    with cuda.ahead_of_time(target) as made:
        library = tvm.compile(module, tvm.target.Target(spelled(target)))
    library.export_library(str(path))
    return with_dynamic(made.kernels, module)


def apart(code: str, *arguments: str) -> list[str]:
    """What ``code`` prints in a process of its own: without a driver its stand-in stays loaded in one."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ARCHS = ("sm_80", "sm_90")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a library for each of ARCHS, and its kernels line by line."""
    folder = tmp_path_factory.mktemp("libraries")
    return folder, apart(COMPILE, str(folder), *ARCHS)


@nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_library_holds_machine_code_with_tensor_core_instructions(
    arch: str, libraries: tuple[Path, list[str]]
) -> None:
    path = libraries[0] / f"{arch}.so"
    listed = [line for line in libraries[1] if f"arch='{arch}'" in line]
    assert len(listed) == 2 and len(libraries[1]) == 2 * len(ARCHS)
    assert all("spilled=0" in line for line in listed)
    assert "dynamic=25600)" in listed[1] or "dynamic=25600)" in listed[0]
    assert len(fatbins_in(path)) == 1
    assert b"__global__" not in path.read_bytes()
    try:
        found = instructions(path)
    except ToolError:
        pytest.skip("needs cuobjdump and nvdisasm")
    assert any(i.startswith("HMMA.16816.F32") for i in found["tensor_matmul_fp16_64x64_64x64x32_kernel"])
    assert any(i.startswith("HMMA.16816.F32.BF16") for i in found["flash_bf16_2x2x32x32_causal_kernel"])
    by_name = {k.name: k for k in device_kernels(path)}
    assert set(by_name) == set(found)
    assert all(0 < k.registers < 256 and k.arch == arch for k in by_name.values())


ENCODER = """
import sys
from pathlib import Path
from test_cuda_code import encoders
encoders(Path(sys.argv[1]))
"""


def encoders(folder: Path) -> None:
    """BERT's golden model as libraries below ``folder``, one for each of HALVES."""
    import miaotui
    from miaotui.driver import compilation
    from miaotui.frontends.load import load
    from support.models import MODELS

    golden = MODELS["bert"]
    model, given = golden.build(), golden.inputs(batch=1)
    imported = load(model, inputs=given)
    compilation.load = lambda *_: imported
    options = {"target": "cuda:sm_90", "backend": "tvm", "verify": False, "keep_source": False, "timing": 0.0}
    for precision in HALVES:
        with miaotui.compile(model, given, precision=precision, **options) as executable:
            executable.save(folder / precision)


HALVES = {"fp16": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16"}
"""The instruction that multiplies them."""


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("berts")
    apart(ENCODER, str(folder))
    return folder


def approximate(instructions: dict[str, list[str]]) -> set[str]:
    """Instructions that only fast math gives: numbers near zero flushed, functions of the hardware alone.

    The accurate exp and erf flush in sums and products of their own, never in a fused one.
    """
    flushed = re.compile(r"FFMA\S*\.FTZ|MUFU\.(?:TANH|SIN|COS)")
    return {name for code in instructions.values() for name in code if flushed.match(name)}


@nvcc
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), HALVES.items())
def test_an_encoder_in_halves_computes_on_tensor_cores_and_without_fast_math(
    precision: str, kind: str, berts: Path
) -> None:
    [library] = berts.glob(f"{precision}/variants/*/model.so")
    try:
        found = instructions(library)
    except ToolError:
        pytest.skip("needs cuobjdump and nvdisasm")
    on_cores = {name for name, code in found.items() if any(i.startswith(kind) for i in code)}
    ours = {name for name in found if name.startswith(("tensor_matmul", "flash"))}
    assert ours and on_cores == ours
    assert any(name.startswith("flash") for name in ours)
    assert not [name for name in found if "gelu" in name and name not in ours], "it follows the product"
    assert not approximate(found)


@nvcc
def test_fast_math_would_be_seen(tmp_path: Path) -> None:
    code = "__global__ void k(float *x) { x[0] = tanhf(x[0]) + fmaf(x[1], x[2], x[3]); }"
    source, library = tmp_path / "k.cu", tmp_path / "k.fatbin"
    source.write_text(code)
    command = [str(cuda_toolkit.find_nvcc()), "--fatbin", "--use_fast_math", "-arch=sm_90"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    try:
        assert {"MUFU.TANH", "FFMA.FTZ"} <= approximate(instructions(library))
    except ToolError:
        pytest.skip("needs cuobjdump and nvdisasm")


def test_without_nvcc_the_fix_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cuda_toolkit, "TOOLKIT", tmp_path)
    missing = pytest.raises(ToolError, match=r"nvcc: was not found.*CUDA_HOME")
    with missing, cuda.ahead_of_time(Target("cuda")):
        pass


@nvcc
def test_unknown_architecture_and_broken_code_are_told_apart() -> None:
    with pytest.raises(ToolError, match="does not compile for sm_12"):
        cuda.fatbin_of(cuda_toolkit.find_nvcc(), "", "sm_12")
    with pytest.raises(CompileError, match=r"kernels\.cu: nvcc does not compile it: .*error") as caught:
        cuda.fatbin_of(cuda_toolkit.find_nvcc(), "not C++", "sm_90")
    assert Path(caught.value.problems[0].place).read_text(encoding="utf-8") == "not C++"


def test_fatbins_are_found_by_their_headers(tmp_path: Path) -> None:
    fatbin = bytes.fromhex("50ed55ba01001000") + (5).to_bytes(8, "little") + b"hello"
    path = tmp_path / "library"
    path.write_bytes(b"ELF" + fatbin + b"between\x50\xed\x55\xba" + fatbin + fatbin[:-1])
    assert fatbins_in(path) == [fatbin, fatbin]
