"""Chat templates: published ones render exactly, hostile ones are stopped, errors are named."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from pyrllama.chat import meter
from pyrllama.chat.forms import FORMS
from pyrllama.chat.template import MAX_SOURCE, ChatTemplate, TemplateSource
from pyrllama.errors import ChatTemplateError

if TYPE_CHECKING:
    from pathlib import Path

HELLO = [{"role": "user", "content": "Hello"}]


def template(text: str, **spellings: str) -> ChatTemplate:
    return ChatTemplate(TemplateSource(text, "model.gguf"), **spellings)


def render(text: str, **variables: Any) -> str:
    return template(text).render(HELLO, **variables)


@pytest.fixture(scope="module")
def cases(data: Path) -> dict[str, Any]:
    """Return templates of model authors with what they make of one conversation."""
    content: dict[str, Any] = json.loads((data / "templates" / "cases.json").read_bytes())
    return content


def test_published_templates_render_exactly(cases: dict[str, Any]) -> None:
    plain = [case for case in cases["cases"] if case["python_jinja2_plain"].startswith("equals")]
    assert len(plain) == 22
    for case in plain:
        compiled = template(case["template"], bos=case["bos_token"], eos=case["eos_token"])
        assert compiled.render(cases["conversation"]) == case["expected_jinja"], case["name"]


def test_what_published_templates_refuse(cases: dict[str, Any]) -> None:
    refusals = {case["name"]: case for case in cases["cases"]}
    for name, said in (
        ("google/gemma-7b-it", r"line 1: .* refuses this conversation: System role not supported"),
        ("ai-sage/GigaChat-20B-A3B-instruct", r"line 3: .* 'additional_special_tokens' is undef"),
    ):
        with pytest.raises(ChatTemplateError, match=said):
            template(refusals[name]["template"]).render(cases["conversation"])


@pytest.mark.parametrize(
    ("form", "name"), [("chatml", "teknium/OpenHermes-2.5-Mistral-7B"), ("llama3", "Llama-3")]
)
def test_plain_forms_are_what_models_were_trained_on(
    cases: dict[str, Any], form: str, name: str
) -> None:
    case = next(case for case in cases["cases"] if case["name"] == name)
    rendered = ChatTemplate(FORMS[form]).render(cases["conversation"])
    assert rendered == case["expected_jinja"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("alpaca", "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n"
                   "### Instruction:\nBye\n\n### Response:\n"),
        ("vicuna", "<s>Be brief. USER: Hi ASSISTANT: Hello!</s>USER: Bye ASSISTANT:"),
        ("llama2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s>"
                   "<s>[INST] Bye [/INST]"),
    ],
)  # fmt: skip
def test_plain_forms(form: str, expected: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert ChatTemplate(FORMS[form], bos="<s>", eos="</s>").render(messages) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n{% if true %}\n  b\n    {% endif %}\nc", "a\n  b\nc"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
         '{"a":2,"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}"
         "{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("{{ tools is none }}{{ documents is none }}{{ nothing is defined }}", "TrueTrueFalse"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'aXa'.replace('a', 'b') }}", "a, bbXb"),
        ("{{ '{:>4}|'.format('a') }}{{ '%03d' % 7 }}", "   a|007"),
        ("{{ ['a', 'b'] | join('-') | upper }}{{ 'a\nb' | indent(2) }}", "A-Ba\n  b"),
        ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'ab' * 2 }}{{ [1] + [2] }}", "10243abab[1, 2]"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') ~ 1 }}", "<a>1"),
        ("{{ messages[0].content[1:3] }}{{ messages | length }}", "el1"),
        ("{{ messages | map(attribute='role') | list }}", "['user']"),
        ("{{ namespace() }}", "<namespace>"),
    ],
)  # fmt: skip
def test_what_templates_are_written_with(text: str, expected: str) -> None:
    assert render(text) == expected


def test_the_time_is_that_of_the_rendering() -> None:
    now = datetime(2024, 7, 26, tzinfo=UTC)
    assert render("{{ strftime_now('%d %b %Y') }}", now=now) == "26 Jul 2024"


def test_variables_of_the_caller_go_before_ours() -> None:
    text = "{{ bos_token }}{{ enable_thinking }}"
    arguments = {"enable_thinking": False, "bos_token": "B"}
    assert template(text, bos="<s>").render(HELLO, arguments=arguments) == "BFalse"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a\nb {% if %}", 2, "is no Jinja template that can be used: Expected an expression"),
        ("a\n\n{{ foo.bar }}", 3, "uses what is not there: 'foo' is undefined"),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", 1, "refuses this conversation: no us"),
        ("\n{{ 1 / 0 }}", 2, "fails: ZeroDivisionError"),
        ("{{ 'a' | nothing }}", 1, "is no Jinja template .* No filter named 'nothing'"),
        ("{% include 'x' %}", 1, "fails: TypeError: no loader"),
        ("{{ ''.__class__.__mro__ }}", 1, "access to attribute '__class__' .* is unsafe"),
        ("{{ messages.append(1) }}", 1, "access to attribute 'append' .* is unsafe"),
        ("{{ namespace(__init__=1) }}", 1, "a namespace cannot hold '__init__'"),
        ("{% set ns = namespace() %}{% set ns.__a = 1 %}", 1, "a namespace cannot hold '__a'"),
        ("{{ lipsum() }}", 1, "'lipsum' is undefined"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", None, "cannot be compiled: RecursionError"),
        ("{% for a in [1] %}" * 50 + "{% endfor %}" * 50, None, "cannot be compiled: SyntaxErr"),
        ("{{ " + "9" * 9999 + " }}", None, "cannot be compiled: ValueError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", 1, "fails: RecursionError"),
        ("x" * (MAX_SOURCE + 1), None, f"has {MAX_SOURCE + 1} characters, over {MAX_SOURCE}"),
    ],
)
def test_errors_name_origin_and_line(text: str, line: int | None, said: str) -> None:
    with pytest.raises(ChatTemplateError, match=said) as caught:
        render(text)
    assert caught.value.line == line
    where = "model.gguf" if line is None else f"model.gguf, line {line}"
    assert str(caught.value).startswith(f"{where}: the chat template ")


def test_a_long_refusal_is_cut() -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render("{{ raise_exception('a' * 100000) }}")
    assert len(str(caught.value)) < 700


DOUBLING = (
    "{{% set ns = namespace(x={0}) %}}{{% for i in range(60) %}}{1}{{% endfor %}}{{{{ ns.x }}}}"
)
"""A value that becomes twice as large sixty times."""

GREEDY = {
    "a repeated text": "{{ 'a' * 10**10 }}",
    "a repeated list": "{{ [1] * 10**9 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a product": DOUBLING.format("2**999", "{% set ns.x = ns.x * ns.x %}"),
    "joined texts": DOUBLING.format("'a'", "{% set ns.x = ns.x ~ ns.x %}"),
    "added texts": DOUBLING.format("'a'", "{% set ns.x = ns.x + ns.x %}"),
    "added lists": DOUBLING.format("[1]", "{% set ns.x = ns.x + ns.x %}"),
    "a list in lists": DOUBLING.format("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
    "a tuple in tuples": DOUBLING.format("1", "{% set ns.x = (ns.x, ns.x) %}"),
    "a mapping in mappings": DOUBLING.format("1", "{% set ns.x = {1: ns.x, 2: ns.x} %}"),
    "a mapping that is called": DOUBLING.format("1", "{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
    "a block": DOUBLING.format(
        "'a'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "a macro": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}"
    ),
    "a separator": "{{ ('b' * 99999).join(range(99999) | map('string')) }}",
    "a separator of a filter": "{{ range(99999) | join('b' * 99999) }}",
    "a replacement": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "a replacement of a filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "a wide column": "{{ '{:>1000000000}'.format(1) }}",
    "a computed column": "{{ '{:{}}'.format(1, 10**9) }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a computed number": "{{ '%*d' % (10**9, 1) }}",
    "a wide number of a filter": "{{ '%1000000000d' | format(1) }}",
    "a value that is formatted often": "{{ ('{0}' * 9999).format('a' * 9999) }}",
    "a name that is formatted often": "{{ ('%(a)s' * 9999) % {'a': 'a' * 9999} }}",
    "a name of a filter": "{{ ('%(a)s' * 9999) | format(a='a' * 9999) }}",
    "separators of JSON": "{{ [1, 2] | tojson(separators=('a' * 999, 'b')) }}",
    "an indentation": "{{ 'a' | indent(10**10, true) }}",
    "an indentation of JSON": "{{ [1] | tojson(indent=10**9) }}",
    "parts": "{{ [1] | slice(10**9) | list }}",
    "filled parts": "{{ [1] | batch(linecount=10**9, fill_with=0) | list }}",
    "digits": "{{ 1.5 | round(10**9, 'ceil') }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "copies": "{% set x = 'a' * 10**6 %}" + "{% set y = x[1:] %}" * 99,
    "a long list": "{{ ('a ' * 10**6).split() }}",
    "a format of the time": "{{ strftime_now('%d' * 1000) }}",
}  # fmt: skip


@pytest.mark.parametrize("text", GREEDY.values(), ids=GREEDY.keys())
def test_a_greedy_template_is_stopped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_STEPS", 10_000)
    monkeypatch.setattr(meter, "MAX_WEIGHT", 1 << 20)
    with pytest.raises(ChatTemplateError, match="line 1: the chat template was stopped: "):
        render(text)


def test_a_slow_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_SECONDS", -1.0)
    with pytest.raises(ChatTemplateError, match="was stopped: it takes longer than"):
        render("{% for i in range(9) %}{% endfor %}")


def test_long_conversations_have_more_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_WEIGHT", 1 << 16)
    text = "{% for m in messages %}{{ m.content | trim ~ '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 1000}] * 20
    assert len(template(text).render(messages)) == 5000 * 20


def test_the_environment_of_one_rendering_is_not_that_of_the_next() -> None:
    compiled = template("{% for i in range(400) %}{{ messages[0].content }}{% endfor %}")
    assert {compiled.render(HELLO) for _ in range(3)} == {"Hello" * 400}
