"""plan.json: written and read, and refused where it contradicts itself, its files or its reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.errors import ArtifactError
from miaotui.compiler.options import Target
from miaotui.compiler.parallel.check_plan import read_plan
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import PLAN, Part, Plan
from miaotui.runtime.onnxruntime import OnnxRuntimeModel
from support.plans import VERSION, run_whole, write_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_plan(tmp_path, Mesh(dp=1, pp=2, tp=2))


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    assert read_plan(tmp_path, VERSION, contents=True) == plan


def test_the_hand_made_parts_compute_the_whole(plan: Plan, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    held = [[{"x": x}, {"x": x}], [{"x": x}, {"x": x}]]
    for stage in range(2):
        if stage:
            for shard in range(2):
                held[1][shard]["h"] = held[0][shard]["h"]
        for position, step in enumerate(plan.share(stage, 0).steps["main"]):
            if isinstance(step, Part):
                for shard in range(2):
                    share = plan.share(stage, shard)
                    part = share.steps["main"][position]
                    assert isinstance(part, Part) and share.weights is not None
                    weights = tmp_path / share.weights
                    data = (tmp_path / part.file).read_bytes()
                    model = OnnxRuntimeModel(data, part.signature, target=Target(), weights=weights)
                    with model.open(1) as runner:
                        reads = {s.name: held[stage][shard][s.name] for s in part.signature.inputs}
                        held[stage][shard] |= runner.run(reads)
            else:
                given = [held[stage][shard][step.input] for shard in range(2)]
                met = given[0] + given[1] if step.op == "AllReduce" else np.concatenate(given, step.dim)
                for shard in range(2):
                    held[stage][shard][step.output] = met
    wanted = run_whole(x)
    np.testing.assert_allclose(held[1][0]["y"], wanted["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(held[0][1]["h"], wanted["h"], rtol=1e-4, atol=1e-5)


def test_another_version_is_refused_by_name(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"miaotui 0\.1\.0, this worker is 0\.2\.0"):
        read_plan(tmp_path, "0.2.0")


def test_files_that_differ_are_named(plan: Plan, tmp_path: Path) -> None:
    first, second = sorted(plan.files)[:2]
    (tmp_path / first).unlink()
    data = bytearray((tmp_path / second).read_bytes())
    data[-1] ^= 1
    (tmp_path / second).write_bytes(data)
    with pytest.raises(ArtifactError, match=Path(first).name):
        read_plan(tmp_path)
    (tmp_path / first).write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        read_plan(tmp_path, contents=True)
    assert "has 0 bytes" in str(caught.value) and "contents differ" in str(caught.value)


def test_an_edited_plan_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / PLAN
    path.write_text(path.read_text().replace('"AllReduce"', '"AllGather"', 1))
    with pytest.raises(ArtifactError, match="edited or damaged"):
        read_plan(tmp_path)


def test_a_plan_that_contradicts_itself_is_refused(plan: Plan) -> None:
    def refused(changed: Plan, match: str) -> None:
        with pytest.raises(ArtifactError, match=match):
            Plan.loads(changed.dumps(), "plan.json")

    refused(replace(plan, mesh=Mesh(pp=3)), "shares are not one for each stage")
    entry = plan.entries["main"]
    refused(replace(plan, entries={"main": replace(entry, wires=())}), "reads 'h', which nothing gives")
    lost = replace(entry.fetches[1], spec=replace(entry.fetches[1].spec, name="z"))
    refused(replace(plan, entries={"main": replace(entry, fetches=(lost,))}), "'z' is given by no stage")
    share = plan.shares[1]
    turned = replace(share, steps={"main": (share.steps["main"][0],)})
    refused(replace(plan, shares=(plan.shares[0], turned, *plan.shares[2:])), "different collectives")
    outside = {f"../{name}": record for name, record in plan.files.items()}
    refused(replace(plan, files=outside), "lies outside the folder")
