"""Executables that embed, classify and answer give what the source gives for the same texts."""

from __future__ import annotations

import shutil
from itertools import pairwise

import miaotui
import numpy as np
import pytest
import torch
from miaotui.compiler.errors import ArtifactError, InputError, UnsupportedError
from miaotui.runtime.text import Answer, Classification, TextEncoder
from support.models import minilm_folder
from support.text_folders import encoder_folder, sentence_folder
from transformers import AutoModel, AutoTokenizer, pipeline

TEXTS = [
    "The cat sits outside", "", "A man is playing guitar", "漢字 и кириллица 👩🏽‍🚀", "word " * 400, "short",
    "Line\r\nbreaks\tand   spaces", "don't [SEP] <|endoftext|>", "x" * 300, "The new movie is awesome",
]  # fmt: skip


def compiled(source, folder):
    return miaotui.compile(
        source, output=folder / "model.miaotui", timing=0.0, keep_source=False, backend="ort"
    )


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    with compiled(minilm_folder(), tmp_path_factory.mktemp("minilm")) as executable:
        yield executable


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    encoder_folder(
        folder / "source", "BertForSequenceClassification", id2label={0: "bad", 1: "fair", 2: "good"}
    )
    with compiled(folder / "source", folder) as executable:
        yield executable, folder / "source"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    module = encoder_folder(folder / "source", "BertForQuestionAnswering")
    with compiled(folder / "source", folder) as executable:
        yield executable, module, AutoTokenizer.from_pretrained(folder / "source")


def sentence_transformers(texts: list[str]) -> np.ndarray:
    """What the package does with MiniLM: one text at a time, so without padding."""
    tokenizer, module = (
        AutoTokenizer.from_pretrained(minilm_folder()),
        AutoModel.from_pretrained(minilm_folder()),
    )
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = module(**inputs).last_hidden_state[0].mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def test_embeddings_equal_sentence_transformers(minilm):
    wanted = sentence_transformers(TEXTS)
    for batch_size in (1, 3, 32):
        found = minilm.embed(TEXTS, batch_size=batch_size)
        assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
        assert np.abs(found - wanted).max() < 1e-5


def test_embeddings_tell_meanings_apart(minilm):
    cat, dog, market = minilm.embed(["a cat rests", "a sleeping kitten", "stock markets fell sharply"])
    assert cat @ dog > 0.5 > 0.3 > cat @ market


def test_no_texts_give_no_rows(minilm):
    assert minilm.embed([]).shape == (0, 384)
    assert minilm.embed(iter(["one"])).shape == (1, 384)


@pytest.mark.parametrize("texts", ["one text", 5, [1], [None], [("a",)], [b"bytes"]])
def test_what_is_no_list_of_texts_is_refused(texts, minilm):
    with pytest.raises(InputError, match="texts"):
        minilm.embed(texts)


def test_other_mistakes_are_named(minilm):
    with pytest.raises(InputError, match="batch_size"):
        minilm.embed(["a"], batch_size=0)
    with pytest.raises(InputError, match="has no prompt 'query'; it has none"):
        minilm.embed(["a"], prompt="query")
    with pytest.raises(InputError, match="lone surrogate"):
        minilm.embed(["a", "b\ud800"])


def test_another_task_than_the_models_is_refused(minilm, classifier):
    with pytest.raises(UnsupportedError, match="is a model for embedding, not classification"):
        minilm.classify(["a"])
    with pytest.raises(UnsupportedError, match="not answering"):
        minilm.answer("a", "b")
    with pytest.raises(UnsupportedError, match="is a model for classification, not embedding"):
        classifier[0].embed(["a"])


def test_prompt_is_put_in_front(tmp_path):
    options = {"prompts": {"query": "the fox: ", "passage": ""}, "default_prompt_name": "query"}
    sentence_folder(tmp_path / "source", {}, options=options)
    with compiled(tmp_path / "source", tmp_path) as executable:
        plain = executable.embed(["the fox: jumps", "jumps"], prompt="passage")
        assert np.allclose(executable.embed(["jumps"]), plain[:1], atol=1e-6)
        assert np.allclose(executable.embed(["jumps"], prompt=""), plain[1:], atol=1e-6)
        assert not np.allclose(plain[0], plain[1], atol=1e-3)


def test_labels_equal_transformers(classifier):
    executable, source = classifier
    theirs = pipeline("text-classification", model=str(source), top_k=None)
    for text, found in zip(TEXTS, executable.classify(TEXTS, batch_size=4), strict=True):
        (wanted,) = theirs([text], truncation=True, max_length=64)
        assert isinstance(found, Classification)
        assert list(found.scores) == [each["label"] for each in wanted]
        assert np.allclose(list(found.scores.values()), [each["score"] for each in wanted], atol=1e-5)
        assert (found.label, found.score) == next(iter(found.scores.items()))


def test_labels_of_pairs_equal_transformers(classifier):
    executable, source = classifier
    theirs = pipeline("text-classification", model=str(source))
    pairs = [*pairwise(TEXTS), ("a " * 200, "b " * 200), ("a " * 10, "b " * 200)]
    for (first, second), found in zip(pairs, executable.classify(pairs), strict=True):
        wanted = theirs({"text": first, "text_pair": second}, truncation=True, max_length=64)
        assert found.label == wanted["label"]
        assert found.score == pytest.approx(wanted["score"], abs=1e-5)


def pipeline_answer(module, tokenizer, question: str, context: str, length: int, longest: int = 15) -> Answer:
    """transformers' question-answering pipeline, written down anew with loops and its own tokenizer."""
    found: dict[str, list] = {}
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=length, stride=min(length // 2, 128),
        return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    for number, ids in enumerate(encoded["input_ids"]):
        types = torch.tensor([encoded["token_type_ids"][number]])
        with torch.no_grad():
            output = module(input_ids=torch.tensor([ids]), token_type_ids=types)
        here = [sequence == 1 for sequence in encoded.sequence_ids(number)]
        kept = torch.tensor(
            [h or token == tokenizer.cls_token_id for h, token in zip(here, ids, strict=True)]
        )
        start = output.start_logits[0].masked_fill(~kept, -10000).double().softmax(0)
        end = output.end_logits[0].masked_fill(~kept, -10000).double().softmax(0)
        spans = [
            (float(start[i] * end[j]), i, j)
            for i in range(len(ids))
            for j in range(i, min(i + longest, len(ids)))
            if here[i] and here[j]
        ]
        for score, i, j in sorted(spans, key=lambda span: -span[0])[:12]:
            first = encoded.word_to_chars(number, encoded.token_to_word(number, i), 1).start
            last = encoded.word_to_chars(number, encoded.token_to_word(number, j), 1).end
            entry = found.setdefault(context[first:last].lower(), [first, last, 0.0])
            entry[2] += score
    first, last, score = max(found.values(), key=lambda entry: entry[2])
    return Answer(context[first:last], first, last, score)


CONTEXTS = [
    "The fox lives in the forest near Zürich. It was painted in 1932, unbelievably so.",
    " ".join(f"Sentence number {i} speaks of foxes and colours." for i in range(40)),
    "naïve café Ångström straße jumps over the lazy dog don't rock'n'roll",
    "one",
]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("question", ["Where does the quick fox live?", "dog"])
def test_answers_equal_transformers(question, context, reader):
    executable, module, tokenizer = reader
    found = executable.answer(question, context)
    wanted = pipeline_answer(module, tokenizer, question, context, length=64)
    assert (found.text, found.start, found.end) == (wanted.text, wanted.start, wanted.end)
    assert found.text == context[found.start : found.end]
    assert found.score == pytest.approx(wanted.score, rel=1e-3)


def test_question_without_room_for_the_context_is_refused(reader):
    with pytest.raises(InputError, match="which leaves"):
        reader[0].answer("why " * 60, "because")
    for question, context in (("", "a"), ("a", " "), (None, "a")):
        with pytest.raises(InputError, match=r"is empty|is no text"):
            reader[0].answer(question, context)


def test_model_without_a_text_task_is_named(tmp_path):
    model = torch.nn.Linear(3, 2)
    with (
        miaotui.compile(model, inputs=torch.zeros(1, 3), output=tmp_path / "m", timing=0.0) as executable,
        pytest.raises(UnsupportedError, match="without a text task"),
    ):
        executable.embed(["a"])


@pytest.mark.parametrize("data", ["", "[]", '{"kind": "dancing"}', '{"kind": "embedding", "length": "x"}'])
def test_damaged_task_is_refused(data, minilm, tmp_path):
    shutil.copytree(minilm.folder, tmp_path / "copy")
    with miaotui.open(tmp_path / "copy") as executable:
        (tmp_path / "copy" / "task.json").write_text(data)
        with pytest.raises(ArtifactError, match=r"task\.json"):
            TextEncoder(executable._artifact)
