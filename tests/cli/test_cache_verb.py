"""``miaotui cache``: what is kept, and its removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from miaotui.driver import cache
from support.command_line import Call


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_are_listed_and_removed(call: Call, own_cache: Path) -> None:
    cache.write("sensitivity", "abc", {"one": 1, "two": 2}, "a model")
    assert "a model" in call("cache").stdout and str(own_cache) in call("cache").stdout
    (listed,) = json.loads(call("cache", "ls", "--format", "json").stdout)["files"]
    assert (listed["model"], listed["entries"], listed["kind"]) == ("a model", 2, "sensitivity")
    assert json.loads(call("cache", "clean", "--format", "json").stdout)["removed"] == 1
    assert not list(own_cache.rglob("*.json"))
    assert json.loads(call("cache", "--format", "json").stdout)["files"] == []


def test_foreign_files_stay(call: Call, own_cache: Path) -> None:
    (own_cache / "other").mkdir(parents=True)
    (own_cache / "other" / "notes.json").write_text('{"format": "something else"}', "utf-8")
    assert json.loads(call("cache", "clean", "--format", "json").stdout)["removed"] == 0
    assert (own_cache / "other" / "notes.json").is_file()


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIAOTUI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "miaotui"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == Path.home() / ".cache" / "miaotui"
