"""prune-weights: which weights it prunes, in which orientation, and why it leaves the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.constants import constant_tensor
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.passes.approximation import Approximates
from miaotui.passes.base import PassContext, PassResult
from miaotui.passes.moments import Moment
from miaotui.passes.pipeline import pipeline
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity.patterns import used
from miaotui.passes.sparsity.prune import PruneWeights
from miaotui.passes.weight_uses import weight_uses
from support.decode_graphs import Layers
from support.rewriting import reasons

Array = np.ndarray[Any, Any]


def speed(pattern: str, rows: int, columns: int, density: float) -> float:
    """A backend with a kernel for blocks, and for integers."""
    return {"block": 0.8 / max(density, 0.02), "int8": 3.0, "int4": 5.0}.get(pattern, 1.0)


def fast(**more: Any) -> PassContext:
    return PassContext(speed=speed, **more)


def pruning(**options: Any) -> PruneWeights:
    return PruneWeights(**{"pattern": "block", "least": 1, "sparsity": 0.75, **options})


def forms(columns: int = 24, rows: int = 40) -> Program:
    """Products with matrices as they are and turned, a table, and an output layer that shares it."""
    rng = np.random.default_rng(5)
    b = Builder()
    ids = b.input("ids", ("tokens",), INT64)
    table = b.weight("table", rng.standard_normal((30, columns)))
    x = b.op("Gather", table, ids)
    plain = b.weight("plain", rng.standard_normal((rows, columns)))
    parts = [
        b.op("MatMul", x, b.weight("turned", rng.standard_normal((columns, rows)))),
        b.op("MatMul", x, b.op("Transpose", plain, perm=[1, 0])),
        b.op("Gemm", x, b.weight("gemm", rng.standard_normal((columns, rows)))),
        b.op("Gemm", x, b.weight("gemm_t", rng.standard_normal((rows, columns))), transB=1),
    ]
    b.output(b.op("Relu", b.op("Add", b.op("Add", *parts[:2]), b.op("Add", *parts[2:]))), "y")
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0])), "logits")
    return b.program()


def arrays(program: Program) -> dict[str, Array]:
    found = {name: constant_tensor(value) for name, value in program.main.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


def why(result: PassResult) -> dict[str, str]:
    """Reasons by weight."""
    return {note.node: note.text for note in result.declined}


def moments_of(program: Program, columns: int = 24) -> dict[str, Moment]:
    """Of whatever the weights of ``forms`` read: channels of different sizes that go together a little."""
    rng = np.random.default_rng(1)
    mix = np.eye(columns) + 0.2 * rng.standard_normal((columns, columns))
    sizes = np.exp(rng.standard_normal(columns))
    x = (rng.standard_normal((500, columns)) @ mix * sizes).astype(np.float32)
    read = [node.inputs[0] for node in program.main.graph if node.op_type in ("MatMul", "Gemm")]
    names = [str(value.name) for value in read if value is not None]
    return dict.fromkeys(names, Moment(x.T @ x / len(x), len(x)))


def test_prunes_every_form_of_product_along_its_outputs_and_leaves_the_table() -> None:
    program, plain = forms(), arrays(forms())
    result = pruning().run(program, fast())
    assert result.changed == 4, reasons(result)
    assert reasons(result) == "rows of it are looked up too"
    made = arrays(program)
    for name in ("turned", "gemm", "plain", "gemm_t"):
        rows, old = (made[name].T, plain[name].T) if name in ("turned", "gemm") else (made[name], plain[name])
        assert used(rows, "block") == 0.25
        stays = rows != 0
        assert np.array_equal(rows[stays], old[stays])
    assert np.array_equal(made["table"], plain["table"])
    assert "40 x 24, 1x16 blocks, density 0.25, by magnitude: 3.20 x as fast as dense" in result.hits[0].text


@pytest.mark.parametrize("method", ["auto", "sparsegpt", "wanda"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block"])
def test_methods_that_know_the_inputs_err_less_on_them(method: str, pattern: str) -> None:
    plain = arrays(forms())
    moments = moments_of(forms())
    moment = next(iter(moments.values()))
    options = {"pattern": pattern, "sparsity": 0.5, "force": True}
    errors = {}
    for name, known in (("magnitude", None), (method, moments)):
        program = forms()
        result = pruning(method=name, **options).run(program, fast(moments=known))
        assert result.changed == 4
        assert ("sparsegpt" if name == "auto" else name) in result.hits[0].text
        made = arrays(program)
        errors[name] = sum(moment.error((made[n] - plain[n]).T) for n in ("turned", "gemm"))
        assert abs(used(made["plain"], pattern) - 0.5) < 0.05
    assert errors[method] < errors["magnitude"]


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_auto_learns_from_few_rows_what_they_tell(pattern: str) -> None:
    rng = np.random.default_rng(2)
    seen, others = rng.standard_normal((30, 24)), rng.standard_normal((4000, 24))
    few, true = (Moment((x.T @ x / len(x)).astype(np.float32), len(x)) for x in (seen, others))
    errors = {}
    for method in ("auto", "wanda", "sparsegpt"):
        program, plain = forms(), arrays(forms())
        moments = dict.fromkeys(moments_of(program), few)
        step = pruning(pattern=pattern, method=method, sparsity=0.5, force=True)
        told = str(step.run(program, fast(moments=moments)).hits[0])
        errors[method] = true.error((arrays(program)["turned"] - plain["turned"]).T)
        assert ("by wanda" in told and "not sparsegpt: 30 rows" in told) == (
            method == "auto"
        ) or method == "wanda"
    assert errors["auto"] == errors["wanda"] < errors["sparsegpt"]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_method_without_what_it_asks_for_is_declined(method: str) -> None:
    result = pruning(method=method).run(forms(), fast())
    assert not result.changed
    assert any("was not measured" in note.text for note in result.declined)
    wrong = moments_of(forms(), 23)  # of other channels: as good as none
    assert not pruning(method=method).run(forms(), fast(moments=wrong)).changed
    assert "by magnitude" in pruning().run(forms(), fast(moments=wrong)).hits[0].text


@pytest.mark.parametrize(
    ("pattern", "target", "words"),
    [
        ("block", "cpu", "--backend native"),
        ("unstructured", "cpu", "skips single zeros"),
        ("2:4", "cpu", "skips 2:4 zeros"),
        ("2:4", "cuda", "cuSPARSELt"),
        ("block", "cuda", "no kernel for block"),
    ],
)
def test_without_a_kernel_it_is_declined_by_name_and_forced_for_studies(
    pattern: str, target: str, words: str
) -> None:
    step = pruning(pattern=pattern, sparsity=0.5)
    program, before = forms(), arrays(forms())
    result = step.run(program, PassContext(Target.parse(target)))
    assert not result.changed
    told = [note.text for note in result.declined if "kernel" in note.text or words in note.text]
    assert len(told) == 4
    assert all(words in text and "force=true" in text for text in told)
    assert all(np.array_equal(array, before[name]) for name, array in arrays(program).items())
    forced = pruning(pattern=pattern, sparsity=0.5, force=True).run(
        program, PassContext(Target.parse(target))
    )
    assert forced.changed == 4
    assert "forced" in forced.hits[0].text


def test_a_density_at_which_nothing_is_gained_is_declined_with_the_figures() -> None:
    result = pruning(sparsity=0.2).run(forms(), fast())
    assert not result.changed
    assert "at density 0.8 the sparse kernel is 1.00 x as fast" in why(result)["plain"]


@pytest.mark.parametrize(
    ("precision", "sparsity", "pruned"),
    [
        ("int8", 0.7, False),
        ("int8", 0.8, True),
        ("int4", 0.8, False),
        ("int4", 0.9, True),
        ("fp16", 0.9, False),
    ],
)
def test_it_has_to_beat_the_kernels_of_the_precision_asked_for(
    precision: str, sparsity: float, pruned: bool
) -> None:
    result = pruning(precision=precision, sparsity=sparsity).run(forms(), fast())
    assert bool(result.changed) == pruned
    told = str(result.hits[0]) if pruned else why(result)["plain"]
    assert precision in told


def test_what_the_budget_keeps_in_float_competes_with_float_alone() -> None:
    plan = {"quantize-weights": {"gemm": "off", "plain": "bits=8"}}
    result = pruning(precision="int4", sparsity=0.8).run(forms(), fast(plan=plan))
    assert {note.node for note in result.hits} == {"gemm", "plain"}


def test_quantize_weights_leaves_alone_what_the_sparse_kernel_is_faster_on() -> None:
    program = forms(32, 64)
    pruning(sparsity=0.9, precision="int8").run(program, fast())
    result = QuantizeWeights(bits=8, least=1).run(program, fast())
    assert {note.node for note in result.declined} == {"turned", "plain", "gemm", "gemm_t"}
    assert "which the sparse kernel skips" in result.declined[0].text
    assert QuantizeWeights(bits=4, least=1).run(program, PassContext()).changed == 4  # no such kernel there


def test_integer_weights_with_some_zeros_are_still_quantized() -> None:
    program = forms(32, 64)
    pruning(sparsity=0.5).run(program, fast())
    assert QuantizeWeights(bits=8, least=1).run(program, fast()).changed >= 4


def test_a_plan_sets_options_weight_by_weight() -> None:
    plan = {"prune-weights": {"plain": "off", "gemm": "sparsity=0.5,method=magnitude"}}
    program = forms()
    result = pruning().run(program, fast(plan=plan))
    assert why(result)["plain"] == "the budget keeps it"
    made = arrays(program)
    assert used(made["gemm"].T, "block") == 0.5
    assert used(made["turned"].T, "block") == 0.25
    assert used(made["plain"], "block") == 1


def test_keep_least_and_the_output_layer() -> None:
    result = pruning(keep=("gemm",)).run(forms(), fast())
    assert {note.node for note in result.hits} == {"turned", "plain"}
    assert not pruning(least=24 * 40 + 1).run(forms(), fast()).changed
    odd = pruning(pattern="2:4", sparsity=0.5, force=True).run(forms(22), fast())
    assert why(odd)["plain"] == "its 22 columns are no multiple of 4"


def test_an_output_layer_is_pruned_when_asked() -> None:
    rng = np.random.default_rng(0)

    def head() -> Program:
        b = Builder()
        table = b.weight("table", rng.standard_normal((64, 24)))
        x = b.op("Gather", table, b.input("ids", ("tokens",), INT64))
        b.output(b.op("MatMul", x, b.weight("head", rng.standard_normal((24, 64)))), "logits")
        return b.program()

    declined = pruning().run(head(), fast())
    assert not declined.changed
    assert "output=true" in why(declined)["head"]
    assert pruning(output=True).run(head(), fast()).changed == 1


def test_entries_share_a_pruned_weight_and_passes_run_anew_share_it_too() -> None:
    program = Layers().program()
    again = program.clone()
    step = pruning(sparsity=0.5)
    step.run(program, fast())
    step.run(again, fast())
    before, after = (
        {n: constant_tensor(v) for n, v in each.entries["decode"].graph.initializers.items()}
        for each in (program, again)
    )
    changed = [n for n in before if isinstance(before[n], ir.LazyTensor)]
    assert changed
    assert all(before[n] is after[n] for n in changed)


def test_what_it_offers_the_budget_is_what_it_does() -> None:
    program = forms()
    step = pruning(method="sparsegpt")
    assert isinstance(step, Approximates)
    context = fast(moments=moments_of(program))
    offered = {}
    for name, value in program.main.graph.initializers.items():
        if name in ("turned", "plain"):
            tensor = constant_tensor(value)
            assert tensor is not None
            offered[name] = step.approximation(name, tensor, weight_uses(value), context)
    step.run(program, context)
    for name, found in offered.items():
        assert found is not None
        assert np.array_equal(found.array, arrays(program)[name])
        assert found.nbytes == found.read == 18 * (64 + 2)  # a quarter of 3 tiles by 24 columns
    value = program.main.graph.initializers["plain"]
    tensor = constant_tensor(value)
    assert tensor is not None
    assert step.approximation("plain", tensor, weight_uses(value), PassContext()) is None


def test_the_pruned_model_computes_with_the_pruned_weights() -> None:
    program, feed = forms(), {"ids": np.array([3, 0, 29])}
    before = evaluate(program.main, feed)
    pruning().run(program, fast())
    after = evaluate(program.main, feed)
    made = arrays(program)
    x = made["table"][feed["ids"]]
    wanted = x @ (made["turned"] + made["gemm"]) + x @ (made["plain"] + made["gemm_t"]).T
    np.testing.assert_allclose(after["y"], np.maximum(wanted, 0), atol=1e-4)
    assert np.abs(after["y"] - before["y"]).max() > 0.1
    assert np.array_equal(after["logits"], before["logits"])


def test_the_command_line_s_patterns_become_its_options() -> None:
    steps = pipeline(CompileOptions(backend="native", sparsity="block:0.8", precision="int8"))
    names = [step.name for step in steps]
    step = steps[names.index("prune-weights")]
    assert step == PruneWeights(pattern="block", sparsity=0.8, precision="int8")
    assert names.index("prune-weights") < names.index("quantize-weights")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("pattern=4:8", "no pattern '4:8'"),
        ("sparsity=1.5", "no share"),
        ("pattern=2:4,sparsity=0.7", "half zeros"),
        ("method=lottery", "no method 'lottery'"),
    ],
)
def test_bad_options_are_refused(options: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        PruneWeights().with_options(options)
