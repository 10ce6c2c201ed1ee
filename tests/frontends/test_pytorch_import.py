"""Torch modules as programs: arguments, dimensions, names, layers, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from miaotui.compiler.errors import CompileError, InputError, OptionError, UnsupportedError
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.options import CompileOptions, InputSpec, parse_dim_range
from miaotui.compiler.program import DimRange
from miaotui.frontends.pytorch import import_exported, import_module, module_reference
from support.sessions import relative_error, run_program
from torch import nn


def options(inputs: str = "", dims: str = "") -> CompileOptions:
    specs = tuple(map(InputSpec.parse, inputs.split()))
    return CompileOptions(inputs=specs, dims=tuple(map(parse_dim_range, dims.split())))


def holds(imported, *cases):
    for case, (outputs, layers) in zip(cases, run_program(imported.program, *cases), strict=True):
        wanted, known = imported.reference.run(case), imported.reference.layers(case)
        assert outputs.keys() == wanted.keys() and layers.keys() == known.keys()
        assert all(relative_error(outputs[name], wanted[name]) < 1e-5 for name in wanted)
        assert all(relative_error(layers[path], known[path]) < 1e-5 for path in known)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, scale=None, *, more, twice: bool = False, **rest):
        y = self.inner(self.inner(x))
        y = y * (2 if twice else 1) + more["a"] + more["b"][0] + rest.get("extra", 0)
        return {"y": y, "pair": (y + 1, None, x), "again": [y, y * 2]}


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def nested():
    inputs = {
        "x": array(3, 4),
        "more": {"a": array(3, 4), "b": [array(3, 4)]},
        "twice": True,
        "extra": array(3, 4),
    }
    module = Affine().train()
    return module, import_module(module, CompileOptions(), inputs)


def test_nested_arguments_and_results_keep_their_structure(nested):
    _, imported = nested
    call = imported.program.call
    assert call.parameters == {
        "x": "x", "more": {"dict": {"a": "more_a", "b": ["more_b_0"]}}, "twice": None, "extra": "extra"
    }  # fmt: skip
    assert call.result == {"dict": {
        "y": "y", "pair": {"tuple": ["pair_0", None, "pair_2"]}, "again": ["again_0", "again_1"],
    }}  # fmt: skip
    assert call.tensors == "torch"
    names = ("x", "more_a", "more_b_0", "extra")
    holds(imported, {name: array(5, 4) for name in names}, {name: array(1, 4) for name in names})


def test_module_is_left_as_it_was(nested):
    module, _ = nested
    assert module.training and module.inner.training


def test_second_call_of_a_layer_has_its_own_path(nested):
    _, imported = nested
    assert {"inner", "inner@1"} <= imported.program.layers.keys()


def test_sources_name_layer_operator_and_line(nested):
    _, imported = nested
    found = [source for node in imported.program.main.graph for source in sources(node)]
    assert any(s.layer == "inner" and s.op == "aten.linear.default" for s in found)
    assert any(s.line.startswith("test_pytorch_import.py:") for s in found)
    metadata = [key for node in imported.program.main.graph for key in node.metadata_props]
    assert not [key for key in metadata if key.startswith("pkg.torch")]


def test_module_reference_needs_no_new_export(nested):
    module, imported = nested
    program = imported.program
    names = [spec.name for spec in program.outputs()]
    reference = module_reference(module, program.inputs(), names, program.call, list(program.layers))
    case = {name: array(2, 4) for name in ("x", "more_a", "more_b_0", "extra")}
    # A constant of the import that is no tensor falls back to its default here.
    assert reference.run(case).keys() == imported.reference.run(case).keys()
    assert reference.layers(case).keys() == imported.program.layers.keys()


def test_one_tensor_given_twice_stays_two_inputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return a - 2 * b

    x = torch.ones(2, 3)
    imported = import_module(Two(), CompileOptions(), (x, x))
    holds(imported, {"a": array(2, 3), "b": array(4, 3)[:2]})


def test_output_that_is_an_input_or_a_weight_gets_its_own_name():
    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return {"x": x, "w": self.weight, "z": x + 1}

    imported = import_module(Pass(), CompileOptions(), torch.ones(2, 3))
    assert [spec.name for spec in imported.program.outputs()] == ["x_output", "w", "z"]
    holds(imported, {"x": array(4, 3)})


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) * 2 if x.shape[0] == 2 else x


def test_conventional_dimension_that_does_not_vary_becomes_static_with_a_note():
    imported = import_module(Fixed(), CompileOptions(), torch.ones(2, 6))
    assert imported.program.dims == {} and "static" in imported.program.source["note"]


@pytest.mark.parametrize("given", ["", "x:[batch,6]"])
def test_dimension_that_was_asked_for_must_vary(given):
    with pytest.raises(UnsupportedError, match="batch"):
        import_module(Fixed(), options(given, "" if given else "batch=1..4"), torch.ones(2, 6))


def test_ranges_and_static_sizes_come_from_the_options():
    module = nn.Linear(6, 3)
    assert import_module(module, options(dims="batch=2..9"), torch.ones(2, 6)).program.dims == {
        "batch": DimRange(2, 9)
    }
    fixed = import_module(module, options(dims="batch=8"), torch.ones(2, 6)).program
    assert fixed.dims == {} and fixed.inputs()[0].shape == (8, 6)
    named = import_module(module, options("input:[rows,6]")).program
    assert named.inputs()[0].shape == ("rows", 6)
    assert import_module(module, options("input:1x6")).program.inputs()[0].shape == (1, 6)


def test_learned_limit_is_the_range():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(16, 4))

        def forward(self, ids):
            return self.table[: ids.shape[1]] + ids.unsqueeze(-1)

    program = import_module(Positions(), CompileOptions(), torch.ones(1, 5, dtype=torch.int64)).program
    assert program.dims == {"batch": DimRange(1, None), "sequence": DimRange(1, 16)}


@pytest.mark.parametrize(
    ("inputs", "given", "dims", "words"),
    [
        (None, "", "", "needs example inputs"),
        ((1, 2, 3), "", "", "do not fit"),
        ({"nothing": 1}, "", "", "no tensor"),
        (torch.ones(2, 6), "y:2x6", "", "no input 'y'"),
        (torch.ones(2, 6), "", "depth=3", "no dimension 'depth'"),
        (torch.ones(2, 6), "input:2x6x1", "", "2 dimensions"),
        (None, "other:2x6", "", "no parameter 'other'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, given, dims, words):
    with pytest.raises((InputError, OptionError), match=words):
        import_module(nn.Linear(6, 3), options(given, dims), inputs)


def test_unsupported_operators_come_at_once_with_count_and_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.qr(x)[0], torch.special.bessel_j0(torch.special.bessel_j0(x))

    with pytest.raises(UnsupportedError) as error:
        import_module(Odd(), CompileOptions(), torch.ones(3, 3))
    text = str(error.value)
    assert len(error.value.problems) == 2
    assert (
        "linalg_qr" in text
        and "bessel_j0" in text
        and "(2 uses)" in text
        and "test_pytorch_import.py:" in text
    )


class Branch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return x + self.calls


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.ones(5, 3)


@pytest.mark.parametrize(
    ("module", "words"), [(Branch(), "control flow"), (Counting(), "writes to"), (Broken(), "reduction dim")]
)
def test_what_no_graph_can_hold_is_refused_in_a_sentence(module, words, capfd):
    module.train()
    with pytest.raises(CompileError, match=words) as error:
        import_module(module, CompileOptions(), torch.ones(2, 6))
    assert len(str(error.value)) < 400
    assert module.training
    assert capfd.readouterr() == ("", "")


RECURRENT = {
    "lstm": lambda: nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True),
    "gru": lambda: nn.GRU(6, 4, bias=False),
    "rnn": lambda: nn.RNN(6, 4, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_stay_operators(name):
    torch.manual_seed(0)  # rectified outputs can all be near zero, where no error is small against them
    module = RECURRENT[name]()
    imported = import_module(module, options("input:[a,b,6]"))
    counts = Counter(node.op_type for node in imported.program.main.graph)
    assert counts[name.upper()] == (4 if name == "lstm" else 1) and "Sigmoid" not in counts
    holds(imported, {"input": array(3, 7, 6)}, {"input": array(1, 2, 6)})


def test_few_key_heads_need_no_copies():
    class Attend(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=k.shape[1] > 1
            )

    for heads in (1, 2, 8):
        inputs = (array(2, 8, 5, 4), array(2, heads, 5, 4), array(2, heads, 5, 4))
        imported = import_module(Attend(), CompileOptions(), inputs)
        assert [node.op_type for node in imported.program.main.graph] == ["Attention"]
        holds(imported, dict(zip(("q", "k", "v"), inputs, strict=True)))


def test_exported_program_keeps_its_dimensions():
    batch = torch.export.Dim("anything", max=50)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    exported = torch.export.export(module, (torch.ones(3, 4),), dynamic_shapes=({0: batch},), strict=False)
    imported = import_exported(exported, CompileOptions())
    assert imported.program.dims == {"batch": DimRange(1, 50)}
    assert set(imported.program.layers) == {"0", "1", "2"}
    case = {imported.program.inputs()[0].name: array(7, 4)}
    ((outputs, _),) = run_program(imported.program, case)
    assert relative_error(outputs["output"], imported.reference.run(case)["output"]) < 1e-5
    with pytest.raises(UnsupportedError, match=r"1\.\.50"):
        import_exported(exported, options(dims="batch=1..99"))
