"""``miaotui passes``."""

from __future__ import annotations

import json

from miaotui.passes.pipeline import all_passes
from support.command_line import Call


def test_lists_every_pass_with_a_stable_schema(call: Call) -> None:
    listed = json.loads(call("passes", "--format", "json").stdout)
    assert listed["schema"] == 2
    assert [entry["name"] for entry in listed["passes"]] == list(all_passes())
    for entry in listed["passes"]:
        assert list(entry) == ["name", "room", "summary", "optional", "options", "pipelines", "asked_by"]
        assert entry["summary"]


def test_table_shows_every_pass(call: Call) -> None:
    table = call("passes").stdout
    assert all(name in table for name in all_passes())


def test_passes_that_an_option_stands_for_name_it(call: Call) -> None:
    listed = {e["name"]: e for e in json.loads(call("passes", "--format", "json").stdout)["passes"]}
    assert listed["prune-weights"]["asked_by"] == [
        f"--sparsity {p}" for p in ("unstructured", "2:4", "block")
    ]
    assert listed["prune-heads"]["asked_by"] == ["--sparsity heads"]
    assert listed["prune-channels"]["asked_by"] == ["--sparsity channels"]
    assert listed["factor-weights"]["asked_by"] == ["--rank"]
    assert listed["native-cache"]["asked_by"] == ["--cache"]
    assert "native:O2" in listed["native-linear"]["pipelines"]
    assert listed["native-linear"]["asked_by"] == []
    options = {option["name"]: option["default"] for option in listed["prune-weights"]["options"]}
    assert (options["pattern"], options["force"]) == ("unstructured", False)
    assert "--rank" in call("passes").stdout


def test_room_is_the_folder(call: Call) -> None:
    rooms = {e["name"]: e["room"] for e in json.loads(call("passes", "--format", "json").stdout)["passes"]}
    for name, step in all_passes().items():
        assert type(step).__module__.startswith("miaotui.passes." + rooms[name].replace("/", "."))
