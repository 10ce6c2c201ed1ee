"""``miaotui doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
from support.command_line import Call


@dataclass(frozen=True)
class Finding:
    check: str
    status: str
    fact: str
    fix: str = ""


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def arrange(*found: Finding) -> None:
        module = ModuleType("miaotui.runtime.doctor")
        vars(module)["diagnose"] = lambda: list(found)
        monkeypatch.setitem(sys.modules, "miaotui.runtime.doctor", module)

    return arrange


def test_healthy_machine_exits_0(call: Call, findings: Callable[..., None]) -> None:
    findings(Finding("onnxruntime", "ok", "1.32"), Finding("CUDA", "warn", "no GPU"))
    result = call("doctor")
    assert result.exit_code == 0
    assert "no GPU" in result.stdout


def test_failure_exits_1_and_says_the_fix(call: Call, findings: Callable[..., None]) -> None:
    findings(Finding("onnxruntime", "fail", "not installed", "pip install 'miaotui[cpu]'"))
    result = call("doctor")
    assert result.exit_code == 1
    assert "pip install 'miaotui[cpu]'" in result.stdout


def test_json_schema(call: Call, findings: Callable[..., None]) -> None:
    findings(Finding("onnxruntime", "fail", "not installed", "pip"))
    result = call("doctor", "--format", "json")
    assert json.loads(result.stdout) == {
        "schema": 1,
        "ok": False,
        "findings": [{"check": "onnxruntime", "status": "fail", "fact": "not installed", "fix": "pip"}],
    }
    assert result.exit_code == 1
