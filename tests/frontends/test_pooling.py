"""Sentence-transformers folders: pooling, dense layers and normalisation become part of the graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from miaotui.compiler.errors import CompileError, ModelError, UnsupportedError
from miaotui.compiler.program import Program
from miaotui.compiler.task import FILE, TextTask
from miaotui.frontends.huggingface.sentence import LEGACY
from miaotui.frontends.huggingface.task import describe_task
from miaotui.frontends.huggingface.tokenizer import DEFINITION
from miaotui.frontends.load import load
from safetensors.torch import load_file
from support.sessions import run_program
from support.text_folders import encoder_folder, sentence_folder

IDS = torch.tensor([[2, 10, 11, 12, 13, 14, 3], [2, 20, 21, 3, 0, 0, 0], [2, 30, 3, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
TANH = "torch.nn.modules.activation.Tanh"


def by_hand(hidden: torch.Tensor, mode: str) -> torch.Tensor:
    """The pooling of each row's true tokens, written down anew."""
    rows = []
    for states, mask in zip(hidden, MASK, strict=True):
        tokens = states[mask.bool()]
        weights = torch.arange(1, len(tokens) + 1).float()[:, None]
        rows.append(
            {
                "cls": lambda t=tokens: t[0],
                "lasttoken": lambda t=tokens: t[-1],
                "max": lambda t=tokens: t.max(0).values,
                "mean": lambda t=tokens: t.mean(0),
                "mean_sqrt_len_tokens": lambda t=tokens: t.sum(0) / len(t) ** 0.5,
                "weightedmean": lambda t=tokens, w=weights: (t * w).sum(0) / w.sum(),
            }[mode]()
        )
    return torch.stack(rows)


def embedded(folder) -> np.ndarray:
    inputs = {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()}
    imported = load(folder)
    ((outputs, _),) = run_program(imported.program, inputs)
    reference = imported.reference.run(inputs)
    assert np.abs(outputs["sentence_embedding"] - reference["sentence_embedding"]).max() < 1e-5
    return outputs["sentence_embedding"]


def test_poolings_equal_ones_written_by_hand(tmp_path):
    module = sentence_folder(tmp_path, dict.fromkeys(LEGACY, True), normalize=False)
    with torch.no_grad():
        hidden = module(IDS, attention_mask=MASK)[0]
    wanted = torch.cat([by_hand(hidden, mode) for mode in LEGACY.values()], 1)
    assert np.abs(embedded(tmp_path) - wanted.numpy()).max() < 1e-5


def test_poolings_are_concatenated_and_followed_by_dense_layer_and_normalisation(tmp_path):
    pooling = {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}
    module = sentence_folder(tmp_path, pooling, dense=(16, TANH))
    dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
    with torch.no_grad():
        hidden = module(IDS, attention_mask=MASK)[0]
    both = torch.cat([by_hand(hidden, "cls"), by_hand(hidden, "max")], 1)
    wanted = torch.tanh(both @ dense["linear.weight"].T + dense["linear.bias"])
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    found = embedded(tmp_path)
    assert found.shape == (3, 16)
    assert np.abs(found - wanted.numpy()).max() < 1e-5


def test_newer_configurations_name_the_pooling(tmp_path):
    module = sentence_folder(tmp_path, {"pooling_mode": "lasttoken"}, normalize=False)
    with torch.no_grad():
        hidden = module(IDS, attention_mask=MASK)[0]
    assert np.abs(embedded(tmp_path) - by_hand(hidden, "lasttoken").numpy()).max() < 1e-5


def test_head_that_the_configuration_names_is_left_out(tmp_path):
    sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True}, kind="BertModel")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertForMaskedLM"]}))
    assert embedded(tmp_path).shape == (3, 32)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES = {
    "T5's encoder": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}, None,
    ),
    "MPNet": ("MPNetModel", "MPNetConfig", {**SMALL, "max_position_embeddings": 34}, 32),
    "Qwen3": (
        "Qwen3Model", "Qwen3Config",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_pooled_too(name, tmp_path):
    kind, config, sizes, most = FAMILIES[name]
    sentence_folder(tmp_path, {}, normalize=False)
    module = getattr(transformers, kind)(getattr(transformers, config)(vocab_size=900, **sizes)).eval()
    module.save_pretrained(tmp_path)
    encoder = module.get_encoder() if module.config.is_encoder_decoder else module
    with torch.no_grad():
        hidden = encoder(input_ids=IDS, attention_mask=MASK)[0]
    assert np.abs(embedded(tmp_path) - by_hand(hidden, "mean").numpy()).max() < 1e-5
    assert load(tmp_path).program.dims["sequence"].maximum == most


def task(folder) -> TextTask:
    return TextTask.loads(load(folder).program.assets[FILE], FILE)


def test_facts_about_texts_travel_along(tmp_path):
    sentence_folder(
        tmp_path, {}, settings={"max_seq_length": 20, "do_lower_case": True},
        options={"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    )  # fmt: skip
    assert task(tmp_path) == TextTask("embedding", 20, 900, {"query": "query: "}, "query")


def test_length_is_at_most_the_positions(tmp_path):
    sentence_folder(tmp_path, {}, settings={"max_seq_length": 500})
    assert task(tmp_path).length == 64


def test_labels_travel_along(tmp_path):
    encoder_folder(tmp_path, "BertForSequenceClassification", id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert task(tmp_path) == TextTask("classification", 64, 900, labels=("no", "yes", "perhaps"))


@pytest.mark.parametrize(
    ("problem", "labels", "activation"),
    [
        (None, 1, "sigmoid"),
        (None, 2, "softmax"),
        ("multi_label_classification", 2, "sigmoid"),
        ("regression", 1, "none"),
        ("single_label_classification", 3, "softmax"),
    ],
)
def test_scores_are_made_as_in_transformers(problem, labels, activation, tmp_path):
    kind = "BertForSequenceClassification"
    module = encoder_folder(tmp_path, kind, num_labels=labels, problem_type=problem)
    program = Program({}, assets={DEFINITION: b""})
    describe_task(program, module, None)
    assert TextTask.loads(program.assets[FILE], FILE).activation == activation


def write(path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def listed(*kinds: str) -> list[dict[str, object]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]


REFUSED = {
    "unknown module": ("modules.json", listed("Transformer", "Pooling", "LSTM"), UnsupportedError, "'LSTM'"),
    "no pooling": ("modules.json", listed("Transformer"), UnsupportedError, "no pooling"),
    "unknown pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, UnsupportedError, "'median'"),
    "prompt left out": ("1_Pooling/config.json", {"include_prompt": False}, UnsupportedError, "prompt"),
    "activation of unknown code": (
        "2_Dense/config.json", {"activation_function": "os.system"}, UnsupportedError, "'system'"
    ),
    "dense of other sizes": (
        "2_Dense/config.json", {"in_features": 5, "out_features": 5}, ModelError, "does not fit"
    ),
    "dense of no sizes": ("2_Dense/config.json", {}, ModelError, "does not fit"),
    "no JSON": ("modules.json", "[", ModelError, "no JSON"),
    "no object": ("1_Pooling/config.json", [], ModelError, "no JSON object"),
    "outside": (
        "modules.json", [*listed("Transformer"), {"type": "x.Pooling", "path": "../../etc"}],
        ModelError, "outside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(name, tmp_path):
    file, data, kind, words = REFUSED[name]
    sentence_folder(tmp_path / "model", {}, dense=(8, TANH))
    write(tmp_path / "model" / file, data)
    with pytest.raises(CompileError, match=words) as error:
        load(tmp_path / "model")
    assert type(error.value) is kind


def test_pickled_dense_weights_are_refused(tmp_path):
    sentence_folder(tmp_path, {}, dense=(8, TANH))
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        load(tmp_path)
