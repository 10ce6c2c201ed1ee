"""Export without weights: they are read when they are written, the reference is built when it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from miaotui.compiler.errors import ModelError
from miaotui.frontends.huggingface import streamed
from miaotui.frontends.huggingface.build import build, build_skeleton
from miaotui.frontends.huggingface.folder import open_folder
from miaotui.frontends.load import load
from miaotui.frontends.stored import Stored, same
from safetensors.torch import load_file, save_file
from support.big_llama import TINY_LLAMA, write_llama
from support.models import MODELS
from support.sessions import relative_error, run_program
from support.torch_nets import randomize

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
IDS = np.arange(18).reshape(2, 9)


def outputs_of(imported, inputs=None):
    ((outputs, _),) = run_program(imported.program, inputs or {"input_ids": IDS})
    return outputs


def save(module, folder: Path) -> Path:
    folder.mkdir()
    module.save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    write_llama(folder, SMALL, layers_per_shard=1)
    return folder


def test_bfloat16_shards_become_float32_and_equal_transformers(sharded):
    assert len(list(sharded.glob("*.safetensors"))) == 3
    imported = load(sharded)
    wanted = imported.reference.run({"input_ids": IDS})
    assert relative_error(outputs_of(imported)["logits"], wanted["logits"]) < 1e-5


def test_weights_are_not_in_memory_before_they_are_read(sharded):
    graph = load(sharded).program.main.graph
    large = [v.const_value for v in graph.initializers.values() if v.const_value.size >= 512]
    assert len(large) == 2 + 7 * SMALL["num_hidden_layers"]
    assert all(isinstance(tensor, ir.LazyTensor | ir.ExternalTensor) for tensor in large)


def test_float32_weights_read_as_they_are_stay_in_their_file(tmp_path):
    folder = save(MODELS["llama"].build(), tmp_path / "llama")
    graph = load(folder).program.main.graph
    embedding = graph.initializers["model.embed_tokens.weight"].const_value
    assert isinstance(embedding, ir.ExternalTensor)
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(embedding.numpy(), stored.numpy())


def test_reference_is_built_when_it_is_first_run(sharded, monkeypatch):
    import miaotui.frontends.huggingface as frontend

    built = []
    monkeypatch.setattr(frontend, "build", lambda folder: built.append(folder) or build(folder))
    imported = load(sharded)
    assert not built
    imported.reference.run({"input_ids": IDS})
    imported.reference.run({"input_ids": IDS})
    assert len(built) == 1


@pytest.mark.parametrize("twice", [False, True])
def test_tied_embeddings_are_one_tensor_however_they_are_stored(twice, tmp_path):
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)
    folder = save(randomize(transformers.LlamaForCausalLM(config)), tmp_path / "llama")
    if twice:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    imported = load(folder)
    shape = (SMALL["vocab_size"], SMALL["hidden_size"])
    sizes = [tuple(v.shape.numpy()) for v in imported.program.main.graph.initializers.values()]
    assert sum(sorted(size) == sorted(shape) for size in sizes) == 1
    wanted = imported.reference.run({"input_ids": IDS})
    assert relative_error(outputs_of(imported)["logits"], wanted["logits"]) < 1e-5


def test_embeddings_that_differ_are_not_tied(tmp_path):
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)
    folder = save(randomize(transformers.LlamaForCausalLM(config)), tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    imported = load(folder)
    wanted = imported.reference.run({"input_ids": IDS})
    assert relative_error(outputs_of(imported)["logits"], wanted["logits"]) < 1e-5


def test_weights_of_the_base_model_are_found_under_a_head(tmp_path):
    golden = MODELS["bert"]
    settings = golden.build().config
    whole = randomize(transformers.BertForMaskedLM(settings))
    folder = save(whole, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    tensors = load_file(folder / "model.safetensors")
    base = golden.build().state_dict()
    tensors |= {f"bert.{k}": v for k, v in base.items() if k.startswith("pooler")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    case = golden.inputs(3, **golden.other)
    imported = load(folder)
    wanted = imported.reference.run(case)
    found = outputs_of(imported, case)
    assert all(relative_error(found[key], wanted[key]) < 1e-5 for key in wanted)


def test_parameters_made_of_several_tensors_take_the_road_through_memory(tmp_path):
    config = transformers.MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)
    folder = save(randomize(transformers.MixtralForCausalLM(config)), tmp_path / "mixtral")
    names = load_file(folder / "model.safetensors")
    assert any(".experts.0." in name for name in names), "stored expert by expert"
    assert build_skeleton(open_folder(folder)) is None


def test_large_reference_holds_one_layer_at_a_time(sharded, monkeypatch):
    whole = load(sharded).reference.run({"input_ids": IDS})
    monkeypatch.setattr(streamed, "LARGE", 0)
    imported = load(sharded)
    found = imported.reference.run({"input_ids": IDS})
    np.testing.assert_array_equal(found["logits"], whole["logits"])
    module = imported.reference.reference._module
    assert all(parameter.isnan().all() for parameter in module.parameters()), "nothing stays"


def test_weights_used_outside_of_their_module_are_loaded_all(tmp_path, monkeypatch):
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=16, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    folder = save(randomize(transformers.WhisperForConditionalGeneration(config)), tmp_path / "whisper")
    plain = load(folder)
    inputs = {
        "input_features": np.random.default_rng(0).random((2, 8, 32), np.float32),
        "decoder_input_ids": np.arange(12).reshape(2, 6),
    }
    wanted = plain.reference.run(inputs)
    monkeypatch.setattr(streamed, "LARGE", 0)
    found = load(folder).reference.run(inputs)
    assert all(relative_error(found[key], wanted[key]) < 1e-6 for key in wanted)


def test_decoder_brings_its_context_and_stop_tokens(sharded):
    program = load(sharded).program
    assert program.context == program.dims["sequence"].maximum == 128
    assert json.loads(program.assets["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}
    (sharded / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load(sharded).program.assets["generation_config.json"] == sharded / "generation_config.json"


def test_encoder_has_no_context(tmp_path):
    program = load(save(MODELS["bert"].build(), tmp_path / "bert")).program
    assert program.context is None and "generation_config.json" not in program.assets


def test_shard_that_is_cut_after_the_import_is_named_when_it_is_read(sharded):
    program = load(sharded).program
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    tensors = [v.const_value for v in program.main.graph.initializers.values()]
    with pytest.raises(ModelError, match="00002"):
        for tensor in tensors:
            tensor.numpy()


class TestStored:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_reads_as_float32_what_torch_converts(self, dtype, tmp_path):
        values = torch.randn(33, 7).to(getattr(torch, dtype))
        (tmp_path / "x").write_bytes(b"head" + values.view(torch.uint8).numpy().tobytes())
        kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
        stored = Stored(tmp_path / "x", 4, ir.DataType[kind], (33, 7))
        np.testing.assert_array_equal(stored.read(ir.DataType.FLOAT), values.float().numpy())

    def test_compares_bytes(self, tmp_path):
        (tmp_path / "x").write_bytes(np.array([1, 2, 1, 2, 1, 3], np.float32).tobytes())
        one, two, three = (Stored(tmp_path / "x", at, ir.DataType.FLOAT, (2,)) for at in (0, 8, 16))
        assert same(one, two) and not same(one, three)
        assert not same(one, Stored(tmp_path / "x", 0, ir.DataType.FLOAT, (1, 2)))


COMPILE = """
import sys, miaotui
from miaotui.runtime.conditions import peak_rss
options = {"precision": "int4", "verify": False, "timing": 0, "backend": "ort"}
options["enable"] = ("quantize-weights{method=rtn}",)  # a search for scales takes time, not memory
miaotui.compile(sys.argv[1], output=sys.argv[2], **options).close()
print(peak_rss())
"""


@pytest.mark.slow
def test_a_llama_compiles_to_int4_in_less_memory_than_its_weights_take(tmp_path):
    """Of five layers: the benchmark of memory compiles all 22."""
    folder = tmp_path / "llama"
    folder.mkdir()
    parameters = write_llama(folder, TINY_LLAMA | {"num_hidden_layers": 5})
    command = [sys.executable, "-c", COMPILE, str(folder), str(tmp_path / "out.miaotui")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout
    assert int(printed.split()[-1]) < 1.2e9 < 4 * parameters
