"""``miaotui passes``."""

from __future__ import annotations

import json

from miaotui.passes.pipeline import all_passes
from support.command_line import Call


def test_lists_every_pass_with_a_stable_schema(call: Call) -> None:
    listed = json.loads(call("passes", "--format", "json").stdout)
    assert listed["schema"] == 1
    assert [entry["name"] for entry in listed["passes"]] == list(all_passes())
    for entry in listed["passes"]:
        assert list(entry) == ["name", "room", "summary", "optional", "options", "pipelines"]
        assert entry["summary"]


def test_table_shows_every_pass(call: Call) -> None:
    table = call("passes").stdout
    assert all(name in table for name in all_passes())


def test_room_is_the_folder(call: Call) -> None:
    rooms = {e["name"]: e["room"] for e in json.loads(call("passes", "--format", "json").stdout)["passes"]}
    for name, step in all_passes().items():
        assert type(step).__module__.startswith("miaotui.passes." + rooms[name].replace("/", "."))
