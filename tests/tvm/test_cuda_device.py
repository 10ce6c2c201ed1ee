"""TVM's code on a CUDA device: without one the error names it; with the stand-in of one, all of it runs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from miaotui.compiler.codegen.tvm import cuda_runtime
from miaotui.compiler.errors import ToolError
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.runtime.tvm import TvmModel
from miaotui.runtime.tvm_device import fits

HERE = Path(__file__).parent


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="there is a driver")
def test_without_a_driver_the_error_says_so() -> None:
    model = TvmModel(Path("none"), None, Entry((), ()), "{}", target=Target("cuda", "sm_90"), place="m")
    with pytest.raises(
        ToolError, match=r"^m: no NVIDIA device can be seen.*compiling for cuda works"
    ) as caught:
        model.open()
    assert caught.value.exit_code == 3


def test_without_cudas_runtime_the_fix_is_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str, *_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_runtime.ctypes, "CDLL", missing)
    with pytest.raises(
        ToolError, match=r"libcudart\.so\.13: was not found; pip install 'nvidia-cuda-runtime"
    ):
        cuda_runtime.load_cudart(tmp_path)


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 0), True), ("sm_80", (9, 0), True), ("sm_90", (8, 9), False), ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False), ("sm_100f", (10, 3), True), ("sm_100f", (11, 0), False),
        ("", (8, 6), True),
    ],
)  # fmt: skip
def test_machine_code_runs_on_its_device_and_ptx_on_later_ones(
    arch: str, capability: tuple[int, int], runs: bool
) -> None:
    if runs:
        fits(Target("cuda", arch), capability, "m")
        return
    with pytest.raises(ToolError, match=rf"compiled for {arch}.*cuda:sm_{capability[0]}{capability[1]}"):
        fits(Target("cuda", arch), capability, "m")


@pytest.mark.skipif(has_driver(), reason="the stand-in would be taken for the driver's library")
@pytest.mark.skipif(
    not shutil.which("nvcc") or not shutil.which("g++"), reason="needs CUDA's headers and g++"
)
@pytest.mark.slow
def test_all_of_it_runs_on_the_stand_in_of_a_device() -> None:
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "on_a_device.py")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300,
        cwd=HERE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
