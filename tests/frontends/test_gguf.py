"""GGUF files: every tensor type, every architecture, SmolLM2, tokenizers, all against independent readers."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from miaotui.compiler.ir.quantized import blocked_weight
from miaotui.frontends.gguf.blocks import BLOCKS
from miaotui.frontends.gguf.header import read_header
from miaotui.frontends.gguf.tokenizer import tokenizer_assets
from miaotui.frontends.gguf.weights import Source
from miaotui.frontends.load import load
from support.gguf_files import BYTES, SIZES, TYPES, write_gguf
from support.hard_text import hard_lines
from support.models import gguf_read_once, smollm2_gguf, smollm2_tokenizer
from support.sessions import relative_error, run_program
from support.smollm2 import SHORT, TWELVE, smollm2_native
from tokenizers import Tokenizer

IDS = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (2, 9))
QUANTIZED = [block.name for block in BLOCKS.values() if block.decode is not None]
MIXED = {"token_embd": "Q6_K", "attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "ffn_up": "Q4_0"}


def error(written, ids=IDS):
    program = load(written.path).program
    ((outputs, _),) = run_program(program, {"input_ids": ids})
    with torch.no_grad():
        wanted = written.module(torch.from_numpy(ids)).logits.numpy()
    return relative_error(outputs["logits"], wanted)


@pytest.mark.parametrize("name", QUANTIZED)
def test_random_blocks_decode_to_the_gguf_packages_numbers(name, tmp_path):
    kind = Type[name]
    block = BLOCKS[kind.value]
    raw = np.random.default_rng(1).integers(0, 256, (500, block.nbytes), dtype=np.uint8)
    parts = block.decode(raw)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, kind)
        found = parts.data.reshape(500, -1, block.size) * parts.scale[..., None]
        found = (found if parts.offset is None else found + parts.offset[..., None]).reshape(500, -1)
    finite = np.isfinite(wanted)  # random halves are infinite or no number now and then
    assert finite.mean() > 0.9
    np.testing.assert_array_equal(found[finite], wanted[finite])
    assert (block.elements, block.nbytes) == gguf.GGML_QUANT_SIZES[kind]


MATRICES = (
    "token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"
)  # fmt: skip


@pytest.mark.parametrize("first", [0, len(MATRICES)])
def test_logits_equal_the_module_whose_weights_the_file_holds(first, tmp_path):
    """Each matrix of a layer has another type; in the two files every type comes up."""
    rotated = (TYPES * 2)[first:]
    types = dict(zip(MATRICES, rotated, strict=False))
    single = {"num_hidden_layers": 1}
    assert error(write_gguf(tmp_path / "small.gguf", types=types, settings=single)) < 1e-5


def test_types_mix_in_one_file_and_the_head_is_tied(tmp_path):
    written = write_gguf(tmp_path / "small.gguf", types=MIXED, settings={"tie_word_embeddings": True})
    assert error(written) < 1e-4
    program = load(written.path).program
    gather = next(
        node for node in program.main.graph if node.op_type == "Gather" and blocked_weight(node.inputs[0])
    )
    users = [user.op_type for user, _ in gather.inputs[0].uses()]
    assert sorted(users) == ["Gather", "Transpose"]


def test_blocks_stay_as_they_are_in_the_graph(tmp_path):
    written = write_gguf(tmp_path / "small.gguf", types="Q4_1")
    graph = load(written.path).program.main.graph
    readers = [node for node in graph if node.op_type in ("Gather", "Transpose")]
    found = [w for node in readers if (w := blocked_weight(node.inputs[0])) is not None]
    assert {(w.bits, w.block, w.offset is not None) for w in found} == {(4, 32, True)}
    header = read_header(written.path)
    info = header.tensors["blk.0.ffn_down.weight"]
    raw = np.fromfile(written.path, np.uint8, info.nbytes, offset=info.offset).reshape(info.shape[0], -1)
    wanted = gguf.quants.dequantize(raw, Type.Q4_1)
    weight = Source(written.path, info).weight()
    np.testing.assert_array_equal(weight.numpy(), wanted)
    assert any(w.shape == wanted.shape and np.array_equal(w.numpy(), wanted) for w in found)


ARCHITECTURES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-4},
    "smollm3": {"num_hidden_layers": 4},
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"rope_theta": 5e5},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 4, "attn_logit_softcapping": 20.0},
    "gemma3": {"num_hidden_layers": 6, "query_pre_attn_scalar": 64, "sliding_window": 4},
    "olmo2": {},
    "phi3": {},
    "starcoder2": {"use_bias": True, "norm_epsilon": 1e-4},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_is_rebuilt_from_its_metadata(name, tmp_path):
    assert error(write_gguf(tmp_path / "small.gguf", name, "Q8_0", ARCHITECTURES[name])) < 1e-5


def test_rotary_factors_of_the_file_divide_the_frequencies(tmp_path):
    plain = write_gguf(tmp_path / "plain.gguf")
    reader, path = gguf.GGUFReader(plain.path), tmp_path / "scaled.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor("rope_freqs.weight", factors)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    plain.module.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    imported = load(path)
    ((outputs, _),) = run_program(imported.program, {"input_ids": IDS})
    with torch.no_grad():
        wanted = plain.module(torch.from_numpy(IDS)).logits.numpy()
    assert relative_error(outputs["logits"], wanted) < 1e-5
    assert relative_error(imported.reference.run({"input_ids": IDS})["logits"], wanted) < 1e-5


def test_linear_scaling_of_positions(tmp_path):
    written = write_gguf(
        tmp_path / "small.gguf",
        settings={"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        extra={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    )
    assert error(written) < 1e-5


class TestSmolLM2:
    @pytest.fixture(scope="class")
    def imported(self):
        """The folder of what its import is and computes."""
        return smollm2_native()

    @pytest.mark.slow
    def test_program_carries_what_generation_needs(self, imported):
        facts = json.loads((imported / "facts.json").read_text())
        assert facts["context"] == 8192
        assert facts["model"].startswith("Smollm2 135M")
        assert facts["tensors"] == "210 Q4_1, 61 F32, 1 Q8_0"
        assert json.loads(facts["generation_config.json"])["eos_token_id"] == 2
        assert "<|im_start|>" in facts["tokenizer/chat_template.jinja"]

    @pytest.mark.slow
    def test_logits_equal_transformers(self, imported):
        found, wanted = np.load(imported / "program.npy"), np.load(imported / "logits.npy")
        assert found.shape[1] == SHORT
        assert relative_error(found, wanted[:, :SHORT]) < 1e-4

    @pytest.mark.slow
    def test_reference_is_transformers_own_reading_of_the_file(self, imported):
        path = smollm2_gguf()
        with gguf_read_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True, dtype=torch.float32
            )
        with torch.no_grad():
            wanted = model(torch.from_numpy(TWELVE)).logits.numpy()
        assert relative_error(np.load(imported / "twelve.npy"), wanted) < 1e-6


class TestTokenizer:
    def test_ids_equal_transformers_on_hard_lines(self):
        path = smollm2_gguf()
        assets = tokenizer_assets(read_header(path), "llama", 49152)
        ours = Tokenizer.from_str(assets["tokenizer/tokenizer.json"].decode())
        theirs = smollm2_tokenizer()
        lines = hard_lines(2000)
        assert [ours.encode(line).ids for line in lines] == theirs(lines).input_ids

    def test_file_without_one_still_imports_with_a_note(self, tmp_path):
        program = load(write_gguf(tmp_path / "small.gguf").path).program
        assert "no tokenizer" in program.source["note"]
        assert set(program.assets) == {"generation_config.json"}

    def test_special_tokens_and_template_travel(self, tmp_path):
        program = load(write_gguf(tmp_path / "small.gguf", tokens=BYTES).path).program
        config = json.loads(program.assets["tokenizer/tokenizer_config.json"])
        assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<s>", "</s>", "<pad>")
        assert program.assets["tokenizer/chat_template.jinja"] == b"{{ messages[0].content }}"
        assert "note" not in program.source
        generation = json.loads(program.assets["generation_config.json"])
        assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
