"""What doctor finds, with faked packages, drivers and providers; and once on the real machine."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from miaotui.runtime import doctor
from miaotui.runtime.doctor import Finding, diagnose

CORE = {"numpy": "2.4.0", "onnx": "1.23.2"}
NO_LIB = (
    "2026-11-22 [E:onnxruntime:Default] TryGetProviderInfo_CUDA Failed to load library "
    "libonnxruntime_providers_cuda.so with error: {}: cannot open shared object file: No such file"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the packages, the driver's CUDA version and each provider's outcome."""

    def fake(packages: dict[str, str], driver: Any = None, providers: Any = None) -> list[Finding]:
        def version(name: str) -> str:
            if name not in packages:
                raise metadata.PackageNotFoundError(name)
            return packages[name]

        def answer(code: str, *arguments: str) -> Any:
            outcomes = providers or {}
            return outcomes[arguments[0]] if arguments else list(outcomes)

        requires = {
            "miaotui": ["numpy>=2.0", "onnx>=1.19", "torch>=2.9; extra == 'torch'"],
            "onnxruntime-gpu": ["nvidia-cuda-runtime~=13.0; extra == 'cuda'"],
        }
        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda name: requires.get(name))
        monkeypatch.setattr(doctor, "_cuda_of_driver", lambda: driver)
        gpus = "NVIDIA H200, 580.1, 143771 MiB\n" if driver else ""
        monkeypatch.setattr(doctor, "_output", lambda *command: gpus)
        monkeypatch.setattr(doctor, "_python_json", answer)
        return diagnose()

    return fake


def _only(findings: list[Finding], check: str) -> Finding:
    (found,) = [f for f in findings if f.check == check]
    return found


def _ran(provider: str) -> dict[str, Any]:
    return {"providers": [provider, "CPUExecutionProvider"], "right": True}


def test_this_machine_runs_the_cpu_provider() -> None:
    found = _only(diagnose(), "CPUExecutionProvider")
    assert (found.status, found.fact) == ("ok", "ran a model")


def test_two_builds_fail_with_the_exact_line(machine: Any) -> None:
    findings = machine({**CORE, "onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    found = [f for f in findings if f.status == "fail"]
    assert [f.check for f in found] == ["onnxruntime"]
    assert "1.32.0" in found[0].fact and "1.31.1" in found[0].fact
    assert found[0].fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_no_build_fails(machine: Any) -> None:
    found = _only(machine(CORE), "onnxruntime")
    assert found.status == "fail" and "miaotui[cpu]" in found.fix and "miaotui[cuda]" in found.fix


def test_missing_and_old_core_packages_fail(machine: Any) -> None:
    findings = machine({"onnx": "1.9.0", "onnxruntime": "1.32.0"}, providers={})
    assert _only(findings, "numpy").fix == "pip install 'numpy>=2.0'"
    assert _only(findings, "onnx").fix == "pip install -U 'onnx>=1.19'"


@pytest.mark.parametrize(
    "library", ["libcublasLt.so.13", "libcudnn.so.9", "libcurand.so.10", "libnvrtc.so.13"]
)
def test_missing_cuda_library_names_the_pip_line(machine: Any, library: str) -> None:
    outcome = {"CUDAExecutionProvider": NO_LIB.format(library)}
    found = _only(machine({**CORE, "onnxruntime-gpu": "1.31.1"}, (13, 0), outcome), "CUDAExecutionProvider")
    assert found == Finding("CUDAExecutionProvider", "fail", f"{library} is missing", doctor.GPU_LINE)


def test_gpu_build_without_a_driver_is_a_warning(machine: Any) -> None:
    outcome: dict[str, Any] = {p: _ran(p) for p in ("CUDAExecutionProvider", "CPUExecutionProvider")}
    outcome["CUDAExecutionProvider"] = NO_LIB.format("libcuda.so.1")
    findings = machine({**CORE, "onnxruntime-gpu": "1.31.1"}, None, outcome)
    found = _only(findings, "CUDAExecutionProvider")
    assert found.status == "warn" and "NVIDIA driver" in found.fix
    assert not any(f.status == "fail" for f in findings)


def test_provider_that_is_listed_but_not_used_fails(machine: Any) -> None:
    outcome = {"CUDAExecutionProvider": _ran("CPUExecutionProvider")}
    found = _only(machine({**CORE, "onnxruntime-gpu": "1.31.1"}, (13, 0), outcome), "CUDAExecutionProvider")
    assert (found.status, found.fact) == ("fail", "opened a session on another provider instead")


def test_old_driver_fails(machine: Any) -> None:
    outcome = {"CUDAExecutionProvider": _ran("CUDAExecutionProvider")}
    found = _only(machine({**CORE, "onnxruntime-gpu": "1.31.1"}, (12, 4), outcome), "nvidia driver")
    assert found.status == "fail" and "CUDA 12.4" in found.fact and "CUDA 13" in found.fact


def test_everything_in_place_is_ok(machine: Any) -> None:
    outcome = {p: _ran(p) for p in ("CUDAExecutionProvider", "CPUExecutionProvider")}
    findings = machine({**CORE, "onnxruntime-gpu": "1.31.1", "torch": "2.13.0"}, (13, 0), outcome)
    assert {f.status for f in findings} == {"ok"}
    assert _only(findings, "torch").fact == "2.13.0"
    assert _only(findings, "keras").fix == "pip install 'miaotui[keras]'"


def test_a_provider_of_no_target_only_warns(machine: Any) -> None:
    outcome = {"TensorrtExecutionProvider": NO_LIB.format("libnvinfer.so.10")}
    found = _only(
        machine({**CORE, "onnxruntime-gpu": "1.31.1"}, (13, 0), outcome), "TensorrtExecutionProvider"
    )
    assert (found.status, found.fact) == ("warn", "libnvinfer.so.10 is missing")
    assert found.fix == "miaotui does not use this provider"


def test_a_crash_of_the_probe_is_a_fact() -> None:
    assert "code -" in doctor._python_json("import os; os.abort()")
    assert doctor._python_json("raise ValueError('why')") == "ValueError: why"
