"""The executable folder: round trips, damage, foreign folders, and that nothing is ever half-written."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler import draft as draft_module
from miaotui.compiler import golden
from miaotui.compiler.artifact import Artifact, check, is_executable
from miaotui.compiler.atomic import recover
from miaotui.compiler.draft import Draft, copy
from miaotui.compiler.errors import ArtifactError
from miaotui.compiler.manifest import Certificate, Manifest, is_inside
from miaotui.compiler.program import TensorSpec
from support.folders import mlp, run_mlp, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "m.miaotui")
    return tmp_path / "m.miaotui"


def test_round_trip_keeps_every_field(folder: Path) -> None:
    made = mlp()
    with Artifact(folder) as artifact:
        manifest = artifact.manifest
    assert Manifest.loads(manifest.dumps(), "m") == manifest
    assert manifest.entries["main"].inputs == made.inputs()
    assert manifest.call == made.call and manifest.dims == made.dims and manifest.layers == made.layers
    assert manifest.variants["cpu-ort"].passes[0].hits == ("matmul0: done",)
    assert manifest.variants["cpu-ort"].nodes == 6
    assert check(folder) == manifest


def test_numbers_json_lacks_survive_the_round_trip(folder: Path) -> None:
    certificate = Certificate("torch", False, 1e-4, {"y": float("nan"), "z": float("inf")})
    text = replace(check(folder), certificate=certificate).dumps()
    outputs = Manifest.loads(text, "m").certificate.outputs  # type: ignore[union-attr]
    assert np.isnan(outputs["y"]) and outputs["z"] == float("inf")


def test_variants_share_one_copy_of_the_weights(folder: Path) -> None:
    assert (folder / "weights/weights.bin").stat().st_size <= 2 * (32 * 32 * 4 + 4096)


def test_golden_data_comes_back(folder: Path) -> None:
    with Artifact(folder) as artifact:
        golden = artifact.golden()
    assert golden is not None
    inputs, outputs = golden
    np.testing.assert_array_equal(run_mlp(mlp(), inputs["x"])["y"], outputs["y"])


@pytest.mark.parametrize("name", ["weights/weights.bin", "variants/cpu-ort/main.onnx", "golden/main.npz"])
def test_truncated_file_is_found_at_open(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=re.escape(name)):
        Artifact(folder)


def test_all_missing_files_are_named_at_once(folder: Path) -> None:
    (folder / "variants/source/main.onnx").unlink()
    (folder / "golden/main.npz").unlink()
    with pytest.raises(ArtifactError) as caught:
        Artifact(folder)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "name", ["weights/weights.bin", "variants/source/main.onnx", "golden/main.npz", "report.json"]
)
def test_flipped_bit_is_found_by_check(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    Artifact(folder).close()
    with pytest.raises(ArtifactError, match=re.escape(name)):
        check(folder)


def test_edited_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"tolerance": 0.0001', '"tolerance": 9.0'))
    with pytest.raises(ArtifactError, match="own hash"):
        Artifact(folder)


def test_schema_of_the_future_says_upgrade(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(ArtifactError, match=r"schema 7.*upgrade"):
        Artifact(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "miaotui executable", "schema": 1}', "\xff" * 9]
)
def test_broken_manifest_is_an_artifact_error(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError):
        Artifact(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("default", 3), ("entries", {}), ("dims", {"b": {"minimum": "one"}}), ("surplus", 1), ("name", None)],
)
def test_wrong_field_is_named_even_under_a_valid_hash(folder: Path, field: str, value: object) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data.pop("sha256")
    data[field] = value
    from miaotui.compiler.manifest import _hash

    text = json.dumps({**data, "sha256": _hash(data)})
    with pytest.raises(ArtifactError):
        Manifest.loads(text, "manifest.json")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "..", "", "C:\\x", "a\0b"])
def test_names_that_leave_the_folder_are_not_inside(name: str) -> None:
    assert not is_inside(name)


def test_manifest_with_escaping_file_is_refused(folder: Path) -> None:
    manifest = check(folder)
    record = next(iter(manifest.files.values()))
    with pytest.raises(ArtifactError, match="outside"):
        Manifest.loads(replace(manifest, files={**manifest.files, "../../secret": record}).dumps(), "m")


def test_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no executable folder"):
        Draft(tmp_path / "thesis")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]
    assert (tmp_path / "thesis/draft.txt").read_text() == "years of work"


def test_file_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("notes")
    with pytest.raises(ArtifactError):
        Draft(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "notes"


def test_failing_inside_the_draft_leaves_the_old_folder_and_nothing_else(folder: Path) -> None:
    before = check(folder)
    with pytest.raises(RuntimeError), Draft(folder):
        raise RuntimeError
    assert check(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_damaged_own_folder_may_be_replaced(folder: Path) -> None:
    os.truncate(folder / "weights/weights.bin", 1)
    write_folder(folder)
    check(folder)


def test_relative_symlink_to_the_folder_stays_a_symlink(folder: Path) -> None:
    link = folder.parent / "latest"
    link.symlink_to(folder.name)
    write_folder(link, mlp(seed=3))
    assert link.is_symlink()
    assert check(folder) == check(link)


def test_full_disk_is_an_artifact_error_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = check(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(draft_module, "replace_folder", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_folder(folder, mlp(seed=9))
    assert check(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_missing_permission_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't be written"):
        Draft(tmp_path / "file" / "m.miaotui")


def test_copy_is_equal_and_refuses_damage(folder: Path) -> None:
    with Artifact(folder) as artifact:
        copy(artifact, folder.parent / "c")
        assert check(folder.parent / "c") == artifact.manifest
        data = bytearray((folder / "weights/weights.bin").read_bytes())
        data[0] ^= 1
        (folder / "weights/weights.bin").write_bytes(data)
        with pytest.raises(ArtifactError, match="differs"):
            copy(artifact, folder.parent / "d")
    assert not (folder.parent / "d").exists()


def test_without_exchange_a_kill_between_two_renames_is_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miaotui.compiler.atomic._exchange", lambda first, second: False)
    write_folder(folder, mlp(seed=2))
    after = check(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    from miaotui.compiler.atomic import _name

    aside = _name(folder, "old")
    aside = aside.with_name(aside.name.replace(f"-{os.getpid()}-", f"-{_dead_process()}-"))
    folder.rename(aside)
    recover(folder)
    assert check(folder) == after


WRITER = """
import sys
from pathlib import Path
from miaotui.compiler.program import TensorSpec
from support.folders import mlp, write_folder
programs = [mlp(width=256, seed=s) for s in range(2)]
for p in programs: p.layers.clear()
print("ready", flush=True)
while True:
    for p in programs:
        write_folder(Path(sys.argv[1]), p)
"""


def test_killed_writer_leaves_a_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m.miaotui"
    tests = Path(__file__).parents[1]
    generator = random.Random(0)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            env={**os.environ, "PYTHONPATH": str(tests)},
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            while not folder.exists():
                time.sleep(0.001)
            time.sleep(generator.random() * 0.2)
            writer.send_signal(signal.SIGKILL)
        check(folder)
    with Draft(folder):
        leftovers = [p.name for p in tmp_path.iterdir() if p != folder]
    assert len(leftovers) == 1, "only the draft itself: what dead writers left was cleaned"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_writers_may_race_for_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "m.miaotui"
    command = [sys.executable, "-c", WRITER.replace("while True", "for _ in range(8)"), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    writers = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [writer.communicate()[1] for writer in writers] == [b"", b"", b""]
    check(folder)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_reader_during_replacement_sees_one_writing(tmp_path: Path) -> None:
    folder = tmp_path / "m.miaotui"
    tests = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        env={**os.environ, "PYTHONPATH": str(tests)},
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        while not folder.exists():
            time.sleep(0.001)
        try:
            for _ in range(200):
                with Artifact(folder) as artifact:
                    variant = artifact.manifest.variants["cpu-ort"]
                    artifact.read(variant.entries["main"])
        finally:
            writer.send_signal(signal.SIGKILL)


def test_is_executable_knows_ours_from_others(folder: Path) -> None:
    assert is_executable(folder)
    assert not is_executable(folder.parent)
    assert not is_executable(folder / "manifest.json")


def _dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_golden_data_keeps_every_kind_of_value(tmp_path: Path) -> None:
    bfloat16 = ir.DataType.BFLOAT16
    specs = (TensorSpec("words", ir.DataType.STRING, (2,)), TensorSpec("b", bfloat16, (2,)))
    inputs = {"words": np.array(["a", "ü"], object), "b": np.array([1.5, -2], bfloat16.numpy())}
    outputs = {"sequence": [np.zeros(2), np.ones(3)], "a/b.c": np.array(["x"], object), "n": np.array(np.nan)}
    found, expected = golden.loads(golden.dumps(inputs, outputs), specs)
    assert found["words"].tolist() == ["a", "ü"] and found["words"].dtype == object
    assert found["b"].dtype == bfloat16.numpy() and found["b"].tolist() == [1.5, -2]
    assert [a.tolist() for a in expected["sequence"]] == [[0, 0], [1, 1, 1]]
    assert expected["a/b.c"].tolist() == ["x"] and np.isnan(expected["n"])
