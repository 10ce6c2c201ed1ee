"""Chat templates render as in transformers, and stay within their sandbox and its bounds."""

# ruff: noqa: E501

from __future__ import annotations

import time

import pytest
from miaotui.compiler.errors import InputError, ModelError
from miaotui.runtime.text import Tokenizer
from miaotui.runtime.text.template import ChatTemplate
from support.small_tokenizers import save
from transformers import AutoTokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + (tools | map(attribute="function") | list | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"].strip() + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}{{ call.function.name ~ loop.index0 ~ call.function | tojson(indent=2) }}{%- endfor %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"""
QWEN = """{%- macro render(content, twice=false) %}
{%- if content is string %}{{ content }}{%- else %}
{%- for item in content %}{%- if 'text' in item %}{{ item.text }}{%- else %}<{{ item.type }}>{%- endif %}{%- endfor %}
{%- endif %}{% if twice %}{{ content | trim | upper }}{% endif %}{%- endmacro %}
{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and not(message.content is string and message.content.startswith('<tool>')) %}
        {%- set ns.multi = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
    {%- if '</think>' in message.content %}{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}{%- set content = render(message.content) %}{%- endif %}
    {{- '<|im_start|>' + message.role + ('\\n<think>' + reasoning if loop.index0 > ns.last and reasoning else '') + '\\n' + content }}
    {%- generation %}{{ '<|im_end|>\\n' }}{%- endgeneration %}
    {%- if loop.index0 > 5 %}{% continue %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}
{{ dict(a=1, **{'b': 2}).items() | list }} {{ '%.2f' | format(2.5) }} {{ [3, 1, 2] | sort | join(', ') }} {{ {'é': "<&'>"} | tojson }}
{{ messages | map(attribute='role') | unique | list }} {{ range(3) | sum }} {{ 'x' * 3 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ none }} {{ absent }}
{{- messages[0].items() | map('first') | list }}{{ 'a b'.split() }}{{ "{} {:>4}".format('p', 'q') }}"""

CHATS = {
    "plain": [{"role": "user", "content": "Hi 你好 👩🏽‍🚀"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " <b>&amp;</b> {{ 1 }} "}],
    "turns": [{"role": r, "content": f"{i} text\n" * i} for i, r in enumerate(["user", "assistant", "user"])],
    "reasoning": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>a</think>\nb", "reasoning": "since"},
        {"role": "user", "content": "Go on"},
    ],
    "parts": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "y"}],
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save("byte-level BPE", folder)
    return Tokenizer.open(folder), AutoTokenizer.from_pretrained(folder), folder


@pytest.mark.parametrize("template", [CHATML, MISTRAL, QWEN], ids=["ChatML", "Mistral", "Qwen"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS, "enable_thinking": False}], ids=["", "tools"])
def test_prompts_equal_transformers(template, chat, variables, both):
    ours, theirs, folder = both
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    ours = Tokenizer.open(folder)
    for prompt in (True, False):
        wanted = theirs.apply_chat_template(
            CHATS[chat], chat_template=template, tokenize=False, add_generation_prompt=prompt, **variables
        )
        assert ours.chat(CHATS[chat], prompt, **variables) == wanted


def test_template_by_name_is_taken_for_tools(both, tmp_path):
    save("byte-level BPE", tmp_path, chat_template=[
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
    ])  # fmt: skip
    tokenizer = Tokenizer.open(tmp_path)
    chat = CHATS["plain"]
    assert (tokenizer.chat(chat), tokenizer.chat(chat, tools=TOOLS)) == ("plain", "tools")


def test_missing_template_is_named(tmp_path):
    save("byte-level BPE", tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    assert not tokenizer.has_chat_template
    with pytest.raises(ModelError, match="has no chat template"):
        tokenizer.chat(CHATS["plain"])


def rendered(source: str, **variables: object) -> str:
    return ChatTemplate(source, "T").render([{"role": "user", "content": "x"}], **variables)


def test_messages_that_the_template_refuses_are_the_callers_mistake():
    with pytest.raises(InputError, match="refuses them: roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("messages", ["text", {"role": "user"}, 5, [1], ["x"]])
def test_messages_of_another_form_are_refused(messages):
    with pytest.raises(InputError, match=r"messages?"):
        ChatTemplate("x", "T").render(messages)


def test_objects_reach_the_template_as_names_only():
    assert rendered("{{ given }}", given=object()) == "<object>"


BIG = "{% set b = 'a' * 1000000 %}"
GROW = "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = EXPR %}{% endfor %}{{ ns.x }}"

UNBOUNDED = {
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless range": "{% for i in range(10**9) %}a{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "captured output": BIG + "{% set x %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endset %}{{ x }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "product": "{{ 'a' * 10**10 }}",
    "product of a list": "{{ [1, 2] * 10**9 }}",
    "power": "{{ (2**5000)**5000 }}",
    "square": "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "sum": GROW.replace("EXPR", "ns.x + ns.x"),
    "concatenation": GROW.replace("EXPR", "ns.x ~ ns.x"),
    "list": GROW.replace("EXPR", "[ns.x, ns.x]"),
    "mapping": GROW.replace("EXPR", "{'a': ns.x, 'b': ns.x}"),
    "tuple": GROW.replace("EXPR", "(ns.x, ns.x)"),
    "format of all": GROW.replace("EXPR", "'%s%s' % (ns.x, ns.x)"),
    "repeated format": BIG + "{{ '%(a)s' * 100000 % {'a': b} }}",
    "repeated str.format": BIG + "{{ ('{0}' * 100000).format(b) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width of the filter": "{{ '%1000000000d' | format(1) }}",
    "width of str.format": "{{ '{:1000000000}'.format(1) }}",
    "nested width": "{{ '{:{}}'.format(1, 1000000000) }}",
    "star width": "{{ '%*d' % (1000000000, 1) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "padding": "{{ 'a'.ljust(10**9) }}",
    "tabs": "{{ '\t'.expandtabs(10**9) }}",
    "centre": "{{ 'a' | center(10**9) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "JSON": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "replace": BIG + "{{ b.replace('a', b) }}",
    "replace of nothing": BIG + "{{ b | replace('', b) }}",
    "join": BIG + "{{ ([b] * 99999) | join }}",
    "join of a generator": BIG
    + "{{ range(99999) | map('default', b) | map('replace', 'x', 'y') | join(b) }}",
    "separator": BIG + "{{ range(99999) | join(b) }}",
    "str.join": BIG + "{{ b.join(['a'] * 99999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "bytes": "{{ (5).to_bytes(10**9) }}",
    "lorem ipsum": "{{ lipsum(1000000) }}",
    "strip": BIG + "{{ b.strip(b) }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested ifs": "{% if a %}" * 500 + "{% endif %}" * 500,
    "source": "a" * (1 << 20) + "a",
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_template_without_bounds_is_stopped(name):
    start = time.process_time()
    with pytest.raises(ModelError):
        rendered(UNBOUNDED[name])
    assert time.process_time() - start < 20


REACHING = [
    "{{ ().__class__.__bases__[0].__subclasses__() }}", "{{ messages.__class__ }}", "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}", "{{ messages | attr('__class__') }}", "{{ messages | map(attribute='__class__') | list }}",
    "{{ cycler.__init__.__globals__ }}", "{{ namespace.__init__.__globals__ }}", "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}", "{{ dict.__subclasses__() }}", "{{ self._TemplateReference__context }}",
 "{{ '{0.__class__}'.format(1) }}", "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}", "{{ joiner.__init__ }}", "{{ loop.__class__ }}",
    "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}", "{{ messages.sort() }}", "{{ 'a'.encode() }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}", "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}", "{{ messages | pprint }}",
    "{{ messages | xmlattr }}", "{{ open('/etc/passwd') }}", "{{ __import__('os') }}",
]  # fmt: skip


@pytest.mark.parametrize("source", REACHING)
def test_template_that_reaches_out_is_refused(source):
    with pytest.raises(ModelError):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "{% if %}",
        "{% for x in y %}",
        "{% foo %}",
        "{{ 1 / 0 }}",
        "{{ messages[5].a.b }}",
        "{{ x.y.z }}",
    ],
)
def test_template_that_fails_is_named(source):
    with pytest.raises(ModelError, match=r"^T"):
        rendered(source)


def test_messages_are_not_changed_by_rendering():
    messages = [{"role": "user", "content": "x", "reasoning": "y"}]
    ChatTemplate("{{ messages }}", "T").render(messages)
    assert messages == [{"role": "user", "content": "x", "reasoning": "y"}]
