"""Hugging Face folders: encoders, decoders, encoder-decoders, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from miaotui.compiler.errors import CompileError, ModelError, UnsupportedError
from miaotui.compiler.options import CompileOptions, InputSpec
from miaotui.frontends.huggingface.folder import open_folder
from miaotui.frontends.load import load
from safetensors.torch import load_file, save_file
from support.models import MODELS, minilm_folder
from support.sessions import relative_error, run_program

SIGNATURES = {
    "bert": ["input_ids: int64[batch, sequence]", "attention_mask: int64[batch, sequence]"],
    "gpt2": ["input_ids: int64[batch, sequence]"],
    "t5": [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
        "decoder_input_ids: int64[batch, decoder_sequence]",
    ],
    "vit": ["pixel_values: float32[batch, 3, 64, 64]"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_folder_is_called_by_convention_and_equals_transformers(name, tmp_path):
    golden = MODELS[name]
    golden.build().save_pretrained(tmp_path)
    imported = load(tmp_path)
    assert [str(spec) for spec in imported.program.inputs()] == SIGNATURES[name]
    case = golden.inputs(5, **golden.other)
    ((outputs, _),) = run_program(imported.program, case)
    wanted = imported.reference.run(case)
    assert outputs.keys() == wanted.keys()
    assert all(relative_error(outputs[key], wanted[key]) < 1e-5 for key in wanted)
    assert imported.program.source["framework"].startswith("transformers")


@pytest.fixture(scope="module")
def minilm():
    return load(minilm_folder())


def test_sentence_transformers_folder_is_its_transformer_with_pooling(minilm):
    assert [str(spec) for spec in minilm.program.outputs()] == [
        "sentence_embedding: float32[batch, 384]", "last_hidden_state: float32[batch, sequence, 384]"
    ]  # fmt: skip
    assert minilm.program.dims["sequence"].maximum == 512


def test_tokenizer_travels_with_the_program(minilm):
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {f"tokenizer/{name}" for name in names} <= minilm.program.assets.keys()


def test_weights_of_the_reference_are_mapped_from_the_file(minilm):
    weight = minilm.reference.reference._module.transformer.encoder.layer[0].intermediate.dense.weight
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= weight.data_ptr() < end:
            assert line.endswith("model.safetensors")
            return
    pytest.fail("the weight lies in no mapping")


def test_input_spec_fixes_and_adds_inputs(tmp_path):
    MODELS["bert"].build().save_pretrained(tmp_path)
    specs = ("input_ids:1x16", "attention_mask:1x16", "token_type_ids:1x16:int64")
    program = load(tmp_path, CompileOptions(inputs=tuple(map(InputSpec.parse, specs)))).program
    assert [str(spec) for spec in program.inputs()] == [
        "input_ids: int64[1, 16]", "attention_mask: int64[1, 16]", "token_type_ids: int64[1, 16]"
    ]  # fmt: skip


def config(**changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def drop_two_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("embeddings.word_embeddings.weight", "pooler.dense.bias"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


ESCAPE = '[{"type": "a.Transformer", "path": "../.."}]'

REFUSED = {
    "tensors missing": (drop_two_tensors, ModelError, ["word_embeddings", "pooler.dense.bias"]),
    "other sizes": (config(intermediate_size=96), ModelError, ["intermediate.dense", "output.dense"]),
    "giant": (config(intermediate_size=90_000_000), ModelError, ["parameters"]),
    "field of the wrong type": (config(hidden_size="x"), ModelError, ["config.json"]),
    "remote code": (config(auto_map={"AutoModel": "x.Y"}, model_type="foo"), ModelError, ["auto_map"]),
    "unknown type": (config(model_type="foo"), UnsupportedError, ["foo"]),
    "unknown class": (config(architectures=["Nope"]), UnsupportedError, ["Nope"]),
    "quantized": (config(quantization_config={"quant_method": "awq"}), UnsupportedError, ["awq"]),
    "no config": (lambda f: (f / "config.json").write_text("{"), ModelError, ["no JSON"]),
    "truncated": (cut_weights, ModelError, ["safetensors"]),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ModelError, ["pickled"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelError, ["no model.safetensors"]),
    "escape": (lambda f: (f / "modules.json").write_text(ESCAPE), ModelError, ["outside"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_and_dangerous_folders_are_refused(name, tmp_path):
    change, kind, words = REFUSED[name]
    folder = tmp_path / "bert"
    MODELS["bert"].build().save_pretrained(folder)
    change(folder)
    with pytest.raises(CompileError) as error:
        load(folder)
    assert type(error.value) is kind
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_shard_is_named(tmp_path):
    folder = tmp_path / "bert"
    MODELS["bert"].build().save_pretrained(folder)
    shutil.move(folder / "model.safetensors", folder / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "../c.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError) as error:
        open_folder(folder)
    assert "'b.safetensors'" in str(error.value) and "../c" in str(error.value)
