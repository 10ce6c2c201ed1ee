"""Devices: the catalogue, descriptions of the user's own, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.planner import measure
from miaotui.compiler.planner.catalogue import accelerator, catalogue, devices
from miaotui.compiler.planner.constants import fitted
from miaotui.compiler.planner.measure import local_cpu

MINE = """
name = "mine"
memory_gib = 16
bandwidth_gb = 500
price_hour = 0.5
[tflops]
fp32 = 20
[link]
bandwidth_gb = 16
[network]
bandwidth_gb = 1
"""


def test_every_device_of_the_catalogue_reads() -> None:
    found = {name: accelerator(path) for name, path in catalogue().items()}
    assert {"a100", "h100", "h200", "rtx4090", "b200"} <= set(found)
    for name, device in found.items():
        assert device.name == name
        assert device.rates["fp16"] > device.rates["fp32"]
        assert device.link.bandwidth <= device.bandwidth


def test_a_description_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_text(MINE)
    count, device = devices("3xmine", [path])
    assert (count, device.price, device.title) == (3, 0.5, "mine")
    assert device.between(1).name == "link"
    assert device.between(2).name == "network"


def test_everything_wrong_with_a_description_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "bad"\nmemory_gib = -1\nlink = 3\n[tflops]\nfp16 = "fast"\n')
    with pytest.raises(OptionError) as caught:
        accelerator(path)
    facts = {problem.place: problem.fact for problem in caught.value.problems}
    assert facts == {
        "bad.toml: 'memory_gib'": "is -1, not a positive number",
        "bad.toml: 'bandwidth_gb'": "is missing",
        "bad.toml: [tflops]": "has no fp32",
        "bad.toml: 'fp16'": "is 'fast', not a positive number",
        "bad.toml: [link]": "is 3, not a table",
        "bad.toml: [network]": "is missing",
    }


@pytest.mark.parametrize(
    ("content", "fact"),
    [("name = ", "is no TOML"), ("memory_gib = 3", "gives no name"), (None, "does not exist")],
)
def test_files_that_describe_nothing(tmp_path: Path, content: str | None, fact: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match=fact):
        devices("x", [path])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("8xh1000", "no device 'h1000'"),
        ("0xh100", "does not parse"),
        ("x", "no device 'x'"),
        ("8 of h100", "does not parse"),
        ("4xh100+4xh200", "mixes devices"),
        ("9999xcpu-local", "this machine has"),
    ],
)
def test_devices_that_can_not_be(text: str, fact: str) -> None:
    with pytest.raises(OptionError, match=fact):
        devices(text)


def test_this_machine_is_measured() -> None:
    whole = local_cpu(1)
    assert 1e9 < whole.bandwidth < 1e13
    assert 1e9 < whole.rates["fp32"] < 1e14
    assert fitted().on(whole).memory == 1.0, "what was measured is reached"


def test_shares_of_this_machine_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_measured", lambda cores: {"bandwidth": 1e10, "shared": 3e10, "fp32": 1e11})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    whole, half, quarter = (local_cpu(count) for count in (1, 2, 4))
    assert (whole.bandwidth, half.bandwidth, quarter.bandwidth) == (3e10, 2e10, 1e10)
    assert whole.rates["fp32"] == 2 * half.rates["fp32"] == 4e11
    assert whole.memory == 2 * half.memory


def test_an_unknown_stack_names_all() -> None:
    _, device = devices("h100")
    with pytest.raises(OptionError, match="give one of plain, tensorrt-llm"):
        fitted().stack("mine", device)
