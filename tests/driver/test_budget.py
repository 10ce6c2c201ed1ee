"""The choice of formats under a budget: held, used, recorded, measured once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui import VerificationError, driver
from miaotui.compiler.artifact import Artifact
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.weights import stored_bytes
from miaotui.driver import cache
from miaotui.driver.budget import cost_of, held
from miaotui.driver.calibration import measured_moments
from miaotui.driver.context import context_of
from miaotui.driver.formats import STORED, Format, approximating
from miaotui.driver.groups import Group
from miaotui.driver.knapsack import cheapest
from miaotui.driver.meter import Meter
from miaotui.driver.metric import Metric
from miaotui.driver.probe import reached
from miaotui.driver.progress import Journal, Silent
from miaotui.driver.remade import recorded_options, recorded_recipe, source_program
from miaotui.driver.search import USED, Search
from miaotui.driver.sensitivity import Row, sensitivity
from miaotui.frontends.load import load
from miaotui.passes.pipeline import pipeline
from support.layers import WIDTH, branches, stack

OPTIONS: dict[str, Any] = {"precision": "int4", "backend": "ort", "timing": 0, "keep_source": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(model: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """The report of a compile."""
    with driver.compile(model, CompileOptions(**{**OPTIONS, **options}), output=folder) as executable:
        return executable.report


def meter_of(model: Path, **options: Any) -> Meter:
    """A meter as the driver makes it, on random inputs."""
    chosen = CompileOptions(**{**OPTIONS, **options})
    program, steps = load(model).program, pipeline(chosen)
    samples = [{"x": np.random.default_rng(3).standard_normal((16, WIDTH)).astype(np.float32)}]
    context = context_of(chosen)
    context.moments = measured_moments(program, samples)
    prepared, context = reached(program, steps[: steps.index(approximating(steps)[0])], context)
    return Meter(prepared, steps, context, samples, Metric(None), chosen.precision)


def test_budget_is_held_and_used_and_what_is_left_of_it_buys_bytes(tmp_path: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    sizes = []
    for budget in (0.02, 0.15, 0.19):
        report = compiled(model, tmp_path / "out.miaotui", budget=budget, goal="size")
        found = report["budget"]
        assert report["error"]["ok"] and report["error"]["scaled"] <= found["error"] <= budget
        formats = {row["format"] for row in found["groups"]}
        assert found["error"] >= 0.5 * budget and len(formats) > 1
        sizes.append(sum(row["bytes"] for row in found["groups"]))
    assert sizes[0] > sizes[1] > sizes[2]


def test_plan_is_recorded_and_makes_the_same_weights_again(tmp_path: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    report = compiled(model, tmp_path / "out.miaotui", budget=0.15)
    with Artifact(tmp_path / "out.miaotui") as artifact:
        plan = artifact.manifest.plan["quantize-weights"]
        assert plan.keys() == {"w0", "w1", "w2"} and len(set(plan.values())) > 1
        options = recorded_options(artifact.manifest)
        assert (options.budget, options.precision) == (0.15, "int4")
        again = recorded_recipe(artifact, source_program(artifact), options).lower()
        hits = {step.step.name: step.result.hits for step in again.steps}
        assert list(map(str, hits["quantize-weights"])) == next(
            p["hits"] for p in report["passes"] if p["name"] == "quantize-weights"
        )
        weights = artifact.manifest.files["weights/weights.bin"]
    compiled(model, tmp_path / "again.miaotui", budget=0.15)
    with Artifact(tmp_path / "again.miaotui") as artifact:
        assert artifact.manifest.files["weights/weights.bin"] == weights


def test_weights_that_read_one_input_get_one_format(tmp_path: Path) -> None:
    report = compiled(branches(tmp_path / "qkv.onnx"), tmp_path / "out.miaotui", budget=0.02)
    groups = {tuple(row["weights"]) for row in report["budget"]["groups"]}
    assert groups == {("q", "k", "v"), ("o",)}
    with driver.open(tmp_path / "out.miaotui") as executable:
        plan = executable.manifest.plan["quantize-weights"]
    assert plan["q"] == plan["k"] == plan["v"]


def test_integer_activations_are_chosen_where_the_budget_has_room_for_their_rounding(tmp_path: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    formats = []
    for budget in (0.012, 0.05):
        report = compiled(model, tmp_path / "out.miaotui", precision="int8", budget=budget, goal="size")
        found = report["budget"]
        assert report["error"]["scaled"] <= found["error"] <= budget
        formats.append([row["format"] for row in found["groups"]])
    assert "int8 activations" not in formats[0] and "int8 g32" in formats[0]
    assert formats[1] == ["int8 activations"] * 3 and 0.5 < found["predicted"] / found["error"] < 2
    with driver.open(tmp_path / "out.miaotui") as executable:
        plan = executable.manifest.plan
    assert set(plan["quantize-activations"].values()) == {""}
    assert set(plan["quantize-weights"].values()) == {STORED}


def test_weights_whose_activations_are_left_alone_are_stored_in_8_bits(tmp_path: Path) -> None:
    report = compiled(
        stack(tmp_path / "stack.onnx"), tmp_path / "m", precision="int8", budget=0.05, goal="size"
    )
    assert {row["format"] for row in report["budget"]["groups"]} == {"int8 activations"}
    with Artifact(tmp_path / "m") as artifact:
        recipe = recorded_recipe(artifact, source_program(artifact), recorded_options(artifact.manifest))
        whole, reverted = recipe.lower(), recipe.lower(frozenset({"quantize-activations"}))
    rounded = {s.step.name: s.result.changed for s in whole.steps}
    assert (rounded["quantize-activations"], rounded["quantize-weights"]) == (3, 0)
    hits = [str(hit) for s in reverted.steps for hit in s.result.hits if s.step.name == "quantize-weights"]
    assert len(hits) == 3 and all("in 8 bits" in hit for hit in hits)
    assert stored_bytes(reverted.program) < 0.3 * stored_bytes(recipe.source)


def stored(folder: Path) -> dict[str, int]:
    """Bytes of each weight in the executable's ONNX file by name, with the dtype: ``w0 FLOAT16``."""
    model = ir.load(folder / "variants/cpu-ort/main.onnx")
    values = model.graph.initializers.values()
    tensors = [value.const_value for value in values if value.const_value is not None]
    return {f"{t.name} {t.dtype.name}": t.nbytes for t in tensors if t.size >= WIDTH * WIDTH}


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_budget_that_8_bits_miss_is_held_by_float16(tmp_path: Path, precision: str) -> None:
    folder, once = tmp_path / "out.miaotui", WIDTH * WIDTH
    options = {"precision": precision, "budget": 2e-3, "goal": "size", "keep_source": False}
    report = compiled(stack(tmp_path / "stack.onnx"), folder, **options)
    rows = report["budget"]["groups"]
    assert [(row["format"], row["bytes"]) for row in rows] == [("fp16", 2 * once)] * 3
    assert 0 < report["error"]["scaled"] <= report["budget"]["error"] <= 2e-3
    assert stored(folder) == {f"w{index}.fp16 FLOAT16": 2 * once for index in range(3)}
    assert (folder / "weights/weights.bin").stat().st_size == 3 * 2 * once
    waterfall = {row["pass"]: row["bytes"] for row in report["waterfall"]["rows"]}
    assert waterfall["store-halves"] == -3 * 2 * once and waterfall["quantize-weights"] == 0
    assert miaotui.verify(folder, reference=tmp_path / "stack.onnx").ok


def test_8_bits_float16_and_float32_stand_side_by_side(tmp_path: Path) -> None:
    model, folder, once = stack(tmp_path / "stack.onnx"), tmp_path / "out.miaotui", WIDTH * WIDTH
    enable = ("quantize-weights{keep=w1}",)
    report = compiled(model, folder, budget=0.01, goal="size", enable=enable, keep_source=False)
    formats = {row["group"]: row["format"] for row in report["budget"]["groups"]}
    assert formats["w1"] == "fp32" and sorted(formats.values()) == ["fp16", "fp32", "int8 g16"]
    half = next(name for name, each in formats.items() if each == "fp16")
    found = {name: nbytes for name, nbytes in stored(folder).items() if "FLOAT" in name}
    assert found == {f"{half}.fp16 FLOAT16": 2 * once, "w1 FLOAT": 4 * once}
    whole = sum(row["bytes"] for row in report["budget"]["groups"])
    assert whole <= (folder / "weights/weights.bin").stat().st_size <= whole + 4096
    assert 1e-3 < report["error"]["scaled"] <= 0.01
    assert miaotui.verify(folder, reference=model).ok


@pytest.mark.parametrize(("factor", "label"), [(1e6, "fp32"), (1e-7, "fp32"), (1.0, "fp16")])
def test_weights_that_float16_cannot_hold_are_not_offered_in_it(
    tmp_path: Path, factor: float, label: str
) -> None:
    b = Builder()
    x = b.input("x", ("batch", WIDTH))
    weight = (np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / 12 * factor).astype(np.float32)
    b.output(
        b.op(
            "Tanh", b.op("Mul", b.op("MatMul", x, b.weight("w", weight)), b.weight("s", np.array(1 / factor)))
        ),
        "y",
    )
    ir.save(b.model(), tmp_path / "m.onnx")
    report = compiled(tmp_path / "m.onnx", tmp_path / "out.miaotui", budget=2e-3, goal="size")
    assert [row["format"] for row in report["budget"]["groups"]] == [label]
    assert report["error"]["scaled"] <= 2e-3


@pytest.mark.parametrize(("budget", "bits"), [(0.03, 8), (2e-3, 16)])
def test_factors_are_rounded_as_was_chosen_for_their_weight(tmp_path: Path, budget: float, bits: int) -> None:
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", ("batch", 256))
    weight = rng.standard_normal((256, 48)) @ rng.standard_normal((48, 256)) / 110
    b.output(b.op("Relu", b.op("MatMul", x, b.weight("w", weight))), "y")
    ir.save(b.model(), tmp_path / "m.onnx")
    enable = ("factor-weights{rank=0.4,force=true}",)
    report = compiled(
        tmp_path / "m.onnx", tmp_path / "out", budget=budget, goal="size", rank=0.4, enable=enable
    )
    (row,) = report["budget"]["groups"]
    assert row["format"].startswith("factor-weights 0.4 + " + ("int8" if bits == 8 else "fp16"))
    assert row["bytes"] < bits / 8 * 1.3 * 48 * (256 + 256)
    assert report["budget"]["error"] < 3 * report["budget"]["predicted"], "what is built is what was measured"
    hits = [hit for p in report["passes"] if p["name"] == "quantize-weights" for hit in p["hits"]]
    assert len(hits) == 2 and all("float16" in hit if bits == 16 else "in 8 bits" in hit for hit in hits)


def test_for_speed_float16_counts_as_what_its_kernel_makes_of_it(tmp_path: Path) -> None:
    options = CompileOptions(**{**OPTIONS, "goal": "speed"})
    for name, speed in (("ort", 1.0), ("slower", 0.9), ("faster", 1.2)):
        with meter_of(stack(tmp_path / "stack.onnx")) as meter:
            meter.context = replace(
                meter.context,
                speed=lambda kernel, rows, columns, density, s=speed: s if kernel == "fp16" else 0.0,
                reads_halves=name != "ort",
            )
            rows = {row.format.label: row for row in sensitivity(meter, Journal(Silent()))[:2]}
            half, wide = rows["fp16"], rows["fp32"]
            assert half.nbytes * 2 == wide.nbytes and half.read == wide.read / (1 if name == "ort" else 2)
            other, text = (cost_of(options, m, meter) for m in (Metric(None), Metric(WIDTH)))
        assert (other(half) < other(wide)) == (name != "slower")
        ratio = text(half) / text(wide)  # a token waits for what is read
        assert ratio == pytest.approx(1.0 if name == "ort" else 0.5, rel=1e-5) and ratio < 1


def test_what_was_measured_once_is_read_from_the_cache(tmp_path: Path, own_cache: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    with meter_of(model) as meter:
        first = sensitivity(meter, Journal(Silent()))
        assert meter.runs == 3 * 8, "three weights in float16, four sizes of blocks of int8 and three of int4"
    with meter_of(model) as meter:
        assert sensitivity(meter, Journal(Silent())) == first
        assert meter.runs == 0
    (file,) = own_cache.glob("*/*.json")
    file.write_text(file.read_text("utf-8")[:-40], "utf-8")
    with meter_of(model) as meter:
        assert sensitivity(meter, Journal(Silent())) == first
        assert meter.runs == 24
    assert [each.entries for each in cache.listed()] == [len(meter.formats) * 3]
    assert cache.clean()[0] == 1 and not list(cache.listed())


def test_an_edited_figure_in_the_cache_is_not_believed(own_cache: Path) -> None:
    cache.write("sensitivity", "key", {"a": [1.0, 2.0]}, "model")
    assert cache.read("sensitivity", "key") == {"a": [1.0, 2.0]}
    file = own_cache / "sensitivity" / "key.json"
    file.write_text(file.read_text("utf-8").replace("2.0", "3.0"), "utf-8")
    assert cache.read("sensitivity", "key") == {}


def test_other_data_or_options_are_measured_again(tmp_path: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    keys = {meter_of(model).key(), meter_of(model, enable=("quantize-weights{method=rtn}",)).key()}
    changed = meter_of(model)
    changed.samples[0]["x"] = changed.samples[0]["x"] * 2
    assert len(keys | {changed.key()}) == 3 and meter_of(model).key() in keys


def test_impatience_estimates_errors_from_measured_ones_of_the_same_weights(tmp_path: Path) -> None:
    model = stack(tmp_path / "stack.onnx")
    with meter_of(model) as meter:
        rows = sensitivity(meter, Journal(Silent()), patience=0.0)
        assert meter.runs == 3
    cache.clean()
    with meter_of(model) as meter:
        right = {(row.group, row.format): row.error for row in sensitivity(meter, Journal(Silent()))}
    estimated = [row for row in rows if not row.measured]
    assert len(estimated) == 21
    for row in estimated:  # squared greatest error, one figure each: right within a factor of ten
        assert 0.1 < row.error / right[row.group, row.format] < 10


def test_errors_of_all_weights_together_are_about_the_sum_of_each(tmp_path: Path) -> None:
    with meter_of(stack(tmp_path / "stack.onnx")) as meter:
        rows = [row for row in sensitivity(meter, Journal(Silent())) if row.format.label == "int8 g32"]
        swapped = {}
        for row in rows:
            made = meter.made(row.group, row.format)
            assert made is not None
            swapped.update(made.swapped)
        together = meter.error(swapped)
    assert 0.3 < together / sum(row.error for row in rows) < 3


def options(*rows: tuple[float, int], name: str = "w") -> list[Row]:
    group = Group((name,))
    return [
        Row(group, Format(f"f{index}", ()), error, error, cost, cost)
        for index, (error, cost) in enumerate(rows)
    ]


def test_search_corrects_predictions_that_were_too_good() -> None:
    listed = [options((0.0, 16), *((2.0**k, 16 - k) for k in range(10)), name=f"w{i}") for i in range(12)]
    rows = {each[0].group: each for each in listed}

    def real(chosen: Mapping[Group, Row]) -> float:
        return 1.0 + 3 * sum(row.error for row in chosen.values())

    seen: list[float] = []

    def built(chosen: Mapping[Group, Row]) -> float:
        seen.append(real(chosen))
        return seen[-1]

    search = Search(rows, lambda row: row.nbytes, lambda chosen: 0.0, built, bound=300.0)
    chosen, error = search.run()
    assert chosen is not None and USED * 300 <= error <= 300 and len(seen) <= 5
    assert error == real(chosen)


def test_raising_takes_the_best_steps_until_the_bound_holds() -> None:
    cheap, dear = options((0.0, 20), (8.0, 10)), options((0.0, 90), (9.0, 10), name="v")
    rows = {cheap[0].group: cheap, dear[0].group: dear}
    total = lambda chosen: sum(row.error for row in chosen.values())  # noqa: E731
    search = Search(rows, lambda row: row.nbytes, total, None, bound=10.0)
    start = {cheap[0].group: cheap[1], dear[0].group: dear[1]}
    chosen, error = search.raised(start, 17.0)
    assert chosen == {cheap[0].group: cheap[0], dear[0].group: dear[1]} and error == 9.0
    search.swapped = lambda chosen: 11.0
    assert search.raised(start, 17.0)[0] is None


def test_a_budget_that_nothing_holds_is_an_error_with_the_best_found() -> None:
    rows = options((0.0, 9), (1.0, 5))
    search = Search({rows[0].group: rows}, lambda row: row.nbytes, lambda chosen: 0.25, None, bound=0.01)
    chosen, found = search.run()
    assert chosen is None
    with pytest.raises(VerificationError, match=r"the least error found is 0\.5 \(scaled\); allow 0\.55"):
        held(chosen, Metric(None), 0.1, found)


@pytest.mark.parametrize("seed", range(30))
def test_cheapest_equals_trying_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    errors = [[0.0, *rng.random(3)] for _ in range(count)]
    costs = [[*map(float, rng.integers(1, 50, 4))] for _ in range(count)]
    bound = float(rng.random() * count / 2)

    def total(table: list[list[float]], picked: Any) -> float:
        return sum(row[index] for row, index in zip(table, picked, strict=True))

    every = itertools.product(range(4), repeat=count)
    best = min(total(costs, picked) for picked in every if total(errors, picked) <= bound)
    found = cheapest(errors, costs, bound)
    assert total(errors, found) <= bound and total(costs, found) == best


@pytest.mark.slow
def test_a_language_model_is_kept_within_a_mean_kl(tmp_path: Path) -> None:
    from support.language_models import DECODERS, build

    options = CompileOptions(precision="int4", backend="ort", timing=0, budget=1e-3)
    with driver.compile(build(*DECODERS["llama"]), options, output=tmp_path / "llama") as executable:
        found, error = executable.report["budget"], executable.report["error"]
    assert found["metric"] == error["metric"] == "kl"
    assert 2e-4 < found["error"] <= 1e-3
    assert error["scaled"] <= found["error"] or error["scaled"] == pytest.approx(found["error"])
    groups = {tuple(row["weights"]): row["format"] for row in found["groups"]}
    assert ("model.layers.0.mlp.gate_proj.weight.T", "model.layers.0.mlp.up_proj.weight.T") in groups
    assert len(set(groups.values())) > 1


@pytest.mark.slow
def test_a_language_model_s_entries_share_weights_of_16_bits(tmp_path: Path) -> None:
    from support.language_models import DECODERS, build

    model, folder = build(*DECODERS["llama"]), tmp_path / "llama"
    options = CompileOptions(
        precision="int4", backend="ort", timing=0, budget=1e-5, goal="size", keep_source=False
    )
    with driver.compile(model, options, output=folder) as executable:
        found = executable.report["budget"]
        formats = [row["format"] for row in found["groups"]]
        assert formats.count("fp16") > len(formats) / 2 and found["error"] <= 1e-5
        weights = (folder / "weights/weights.bin").stat().st_size
        assert weights < 0.6 * sum(parameter.numel() * 4 for parameter in model.parameters())
        assert len(executable.generate([3, 4, 5, 6], max_tokens=4).ids) == 4
    assert miaotui.verify(folder, reference=model).ok
