"""Where templates come from: GGUF metadata, files beside a tokenizer, names, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyrllama.chat.sources import Templates, choose_template
from pyrllama.chat.template import MAX_SOURCE, TemplateSource
from pyrllama.errors import ChatTemplateError

MODEL = Path("model.gguf")


def in_gguf(**keys: Any) -> Templates:
    return Templates(MODEL, {f"tokenizer.{name.replace('__', '.')}": v for name, v in keys.items()})


def in_folder(folder: Path, **files: Any) -> Templates:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{suffix}").write_text(text, "utf-8")
    return Templates(folder, {}, folder / "tokenizer.json")


def test_gguf_metadata() -> None:
    templates = in_gguf(chat_template="a", chat_template__tool_use="b", chat_templates=["x"], x=1)
    assert choose_template(templates) == TemplateSource("a", "model.gguf: tokenizer.chat_template")
    assert choose_template(templates, tools=True).text == "b"
    assert choose_template(templates, "tool_use").origin.endswith(".chat_template.tool_use")
    assert choose_template(in_gguf(chat_template="a"), tools=True).text == "a"


def test_metadata_that_is_no_text() -> None:
    with pytest.raises(
        ChatTemplateError, match=r"tokenizer\.chat_template: .* is a int and no text"
    ):
        choose_template(in_gguf(chat_template=1))


def test_a_tokenizer_config(tmp_path: Path) -> None:
    templates = in_folder(tmp_path, tokenizer_config_json={"chat_template": "a"})
    origin = f"{tmp_path / 'tokenizer_config.json'}: chat_template"
    assert choose_template(templates) == TemplateSource("a", origin)


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    templates = in_folder(tmp_path, tokenizer_config_json={"chat_template": named})
    assert choose_template(templates).text == "a"
    assert choose_template(templates, "rag").text == "b"


def test_a_file_of_its_own_goes_before(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t", "utf-8")
    templates = in_folder(
        tmp_path, tokenizer_config_json={"chat_template": "a"}, chat_template_jinja="é"
    )
    assert choose_template(templates) == TemplateSource("é", str(tmp_path / "chat_template.jinja"))
    assert choose_template(templates, tools=True).text == "t"


@pytest.mark.parametrize("templates", [None, in_gguf(), in_gguf(chat_template__rag="x")])
def test_a_base_model_is_told_of_plain_forms(templates: Templates | None) -> None:
    with pytest.raises(
        ChatTemplateError, match=r"base model.*--chat-template alpaca\|vicuna\|chatml"
    ):
        choose_template(templates)
    assert "<|im_start|>" in choose_template(templates, "chatml").text


def test_a_name_of_the_model_goes_before_ours() -> None:
    assert choose_template(in_gguf(chat_template__chatml="mine"), "chatml").text == "mine"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages }}", "utf-8")
    source = TemplateSource("{{ messages }}", str(path))
    assert choose_template(in_gguf(chat_template="a"), str(path)) == source
    assert choose_template(None, path) == source
    assert choose_template(None, source) is source


def test_neither_a_name_nor_a_file() -> None:
    with pytest.raises(
        ChatTemplateError, match=r"^nothing: .* no file, and the known names are al"
    ):
        choose_template(in_gguf(), "nothing")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", b"{", "cannot be read: Expecting"),
        ("tokenizer_config.json", b"[]", "cannot be read: it is not a JSON object"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "neither a text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [5]}', "neither a text nor a list"),
        ("tokenizer_config.json", b"[" * 100_000, "cannot be read: "),
        ("chat_template.jinja", b"a\xff", "is not UTF-8 at byte offset 1"),
        ("chat_template.jinja", b"a" * (4 * MAX_SOURCE + 1), "the file has more than"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    templates = Templates(tmp_path, {}, tmp_path / "tokenizer.json")
    with pytest.raises(ChatTemplateError, match=said) as caught:
        choose_template(templates)
    assert str(tmp_path / name) in str(caught.value)
