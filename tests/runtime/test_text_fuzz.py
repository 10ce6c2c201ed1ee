"""Whatever a tokenizer file or a template holds, reading and using it ends in text or in a clear error."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miaotui.compiler.errors import CompileError
from miaotui.runtime.text import Tokenizer
from miaotui.runtime.text.template import ChatTemplate
from support.small_tokenizers import FAMILIES

FUZZ = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAMPLE = "Hello 世界 👩🏽‍🚀 <s> [CLS] don't\r\n"


@pytest.fixture(scope="module")
def definitions():
    return {name: make().to_str() for name, (make, _) in FAMILIES.items()}


def used(folder) -> None:
    """Everything a tokenizer does, once; a CompileError is a fine end."""
    start = time.process_time()
    try:
        tokenizer = Tokenizer.open(folder)
        ids = tokenizer.encode(SAMPLE)
        detokenizer = tokenizer.detokenizer()
        text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        assert text == tokenizer.decode(ids)
        tokenizer.chat([{"role": "user", "content": SAMPLE}])
    except CompileError as error:
        assert str(error)
    assert time.process_time() - start < 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("family", FAMILIES)
@FUZZ
@given(data=st.data())
def test_changed_definition(family, definitions, data, tmp_path):
    """A field anywhere in tokenizer.json becomes something else, or goes away."""
    state = json.loads(definitions[family])
    at = state
    for _ in range(data.draw(st.integers(0, 5))):
        keys = [
            k
            for k, v in (at.items() if isinstance(at, dict) else enumerate(at))
            if isinstance(v, dict | list) and v
        ]
        if not keys:
            break
        at = at[data.draw(st.sampled_from(keys))]
    key = data.draw(st.sampled_from(sorted(at, key=str) if isinstance(at, dict) else range(len(at))))
    if data.draw(st.booleans()):
        at[key] = data.draw(JSON)
    else:
        del at[key]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    used(tmp_path)


@FUZZ
@given(data=st.data())
def test_cut_or_flipped_bytes(definitions, data, tmp_path):
    text = bytearray(definitions[data.draw(st.sampled_from(sorted(FAMILIES)))].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(text)))
    (tmp_path / "tokenizer.json").write_bytes(text[:cut])
    used(tmp_path)


@FUZZ
@given(config=JSON, special=JSON, generation=JSON, template=JSON)
def test_any_configuration(definitions, config, special, generation, template, tmp_path):
    if isinstance(config, dict):
        config |= {"chat_template": template, "eos_token": special, "bos_token": template}
    inner = tmp_path / "tokenizer"
    inner.mkdir(exist_ok=True)
    (inner / "tokenizer.json").write_text(definitions["WordPiece"], "utf-8")
    (inner / "tokenizer_config.json").write_text(json.dumps(config))
    (inner / "special_tokens_map.json").write_text(json.dumps({"pad_token": special}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    used(tmp_path)


WORDS = [
    "{{", "}}", "{%", "%}", "{#", "-%}", " for ", " in ", " if ", " endif ", " endfor ", " set ",
    "messages", "x", "loop", "namespace()", " macro f() ", " endmacro ", "f()", "[", "]", "(", ")", "|",
    ".", ",", "'", '"', "~", "+", "*", "**", "%", "range(", "tojson", "join", "list", "map(", "__class__",
    "attr(", "replace(", "9999999", "role", "content", "=", "==", " is ", "defined", " not ", "recursive",
    "block a", "endblock", "self.a()", "raise_exception(", "strftime_now(", "format(", "\n",
]  # fmt: skip


@FUZZ
@given(pieces=st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=40))
def test_any_template(pieces):
    start = time.process_time()
    try:
        ChatTemplate("".join(pieces), "T").render([{"role": "user", "content": SAMPLE}])
    except CompileError as error:
        assert str(error)
    assert time.process_time() - start < 20


ATOMS = ["messages", "x", "1", "999999999", "'a'", "[1,'b']", "{'k':2}", "none", "range(9)", "ns", "loop"]
OPERATORS = ["+", "*", "**", "%", "~", "-", "//", "==", "in", "and"]
MEMBERS = ["a", "items()", "split()", "replace('a','bb')", "join", "format", "_x"]
FILTERS = [
    "list",
    "tojson",
    "join('ab')",
    "length",
    "string",
    "map('upper')",
    "sort",
    "sum",
    "format(1)",
    "batch(3)",
]

EXPRESSIONS = st.recursive(
    st.sampled_from(ATOMS),
    lambda e: st.one_of(
        st.builds("({} {} {})".format, e, st.sampled_from(OPERATORS), e),
        st.builds("{}[{}]".format, e, e),
        st.builds("{}.{}".format, e, st.sampled_from(MEMBERS)),
        st.builds("({} | {})".format, e, st.sampled_from(FILTERS)),
        st.builds("[{}, {}]".format, e, e),
    ),
    max_leaves=8,
)


@FUZZ
@given(first=EXPRESSIONS, second=EXPRESSIONS)
def test_any_expressions(first, second):
    source = (
        "{% set ns = namespace(a='b') %}{% set x = " + first + " %}{% for loop_value in [1, 2, 3] %}"
        "{% set ns.a = " + second + " %}{{ ns.a }}{% endfor %}{{ x }}"
    )
    start = time.process_time()
    try:
        ChatTemplate(source, "T").render([{"role": "user", "content": SAMPLE}])
    except CompileError as error:
        assert str(error)
    assert time.process_time() - start < 20
