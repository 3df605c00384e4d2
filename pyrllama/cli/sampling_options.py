"""The options of commands that write text: the choice of tokens, its end, and its form."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from pyrllama.cli.prompt import read_text
from pyrllama.cli.sampling_flags import SAMPLING_FLAGS
from pyrllama.cli.terminal import note
from pyrllama.core import Sampling
from pyrllama.request_maker import GenerationSettings
from pyrllama.sampling_ranges import SAMPLING_RANGES
from pyrllama.sampling_settings import Resolved, SamplingSettings, Source, resolve
from pyrllama.structured import read_structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrllama.cli.options import Decorator
    from pyrllama.llama import Llama

MAX_STRUCTURE_BYTES = 4 * 2**20
_BIAS = re.compile(r"(\d+)([+-](?:\d+\.?\d*|\.\d+|inf))", re.ASCII)

STRUCTURE_OPTIONS: tuple[Decorator, ...] = (
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the text before this string; may be given several times.",
    ),
    click.option(
        "--logprobs",
        type=int,
        default=0,
        metavar="K",
        help="Report the K likeliest tokens beside each one that was chosen (with --json).",
    ),
    click.option(
        "--json-schema",
        metavar="FILE|JSON",
        help="Write JSON that fits a schema: a file, or the schema itself.",
    ),
    click.option("--regex", metavar="PATTERN", help="Write a text that matches all of a pattern."),
    click.option(
        "--grammar",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write a text of a grammar in llama.cpp's GBNF or in Lark's form.",
    ),
    click.option(
        "--model-sampling/--no-model-sampling",
        default=True,
        help="Take settings that nothing here sets from the model's own files.  [default: take]",
    ),
)


def sampling_options() -> Decorator:
    """Return the options of a command that writes text, those of ``SamplingOptions``."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed((*SAMPLING_FLAGS, *STRUCTURE_OPTIONS)):
            command = option(command)
        return command

    return decorate


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The options of ``sampling_options``: what was given of the settings, and the rest."""

    flags: SamplingSettings
    stop: tuple[str, ...]
    logprobs: int
    json_schema: str | None
    regex: str | None
    grammar: Path | None
    model_sampling: bool

    @classmethod
    def taken_from(cls, values: dict[str, Any]) -> Self:
        """Take the options out of those that click hands over."""
        given = {name: values.pop(name) for name in SAMPLING_RANGES if name in values}
        flags = {name: value for name, value in given.items() if value not in (None, ())}
        flags.update(_biases(flags.pop("logit_bias", ()), flags.get("banned_tokens", ())))
        rest = {field.name: values.pop(field.name) for field in fields(cls)[1:]}
        return cls(flags=SamplingSettings(**flags), **rest)  # type: ignore[typeddict-item]

    @property
    def base(self) -> Sampling | None:
        """What stands behind the settings: None is the model's own and then the defaults."""
        return None if self.model_sampling else Sampling()

    def resolved(self, llama: Llama) -> Resolved:
        """Return the settings of the sampler that are in force for a model."""
        model = llama.model_settings if self.model_sampling else None
        return resolve(flags=self.flags, model=model)

    def settings(self) -> GenerationSettings:
        """Return what was given, as ``Llama.stream`` takes it beside ``base``.

        Nothing of a model is needed to find what is wrong: raises ``SettingError`` for settings
        out of range, ``PromptError`` for a schema or a grammar that cannot be read, and
        ``StructureError``, with the file's name, for one that cannot be used.
        """
        resolve(flags=self.flags)
        schema, grammar = self._texts()
        read_structure(schema, self.regex, grammar, origin=self._origin())
        return GenerationSettings(
            **self.flags,
            stop=self.stop,
            logprobs=self.logprobs,
            json_schema=schema,
            regex=self.regex,
            grammar=grammar,
        )

    def _texts(self) -> tuple[str | None, str | None]:
        """Return the schema and the grammar, out of their files."""
        schema, grammar = self.json_schema, self.grammar
        if schema is not None and not _is_schema(schema):
            schema = read_text(Path(schema), "schema", MAX_STRUCTURE_BYTES)
        if grammar is None:
            return schema, None
        return schema, read_text(grammar, "grammar", MAX_STRUCTURE_BYTES)

    def _origin(self) -> str | None:
        """Return what messages call the structure: its file or its option."""
        if self.grammar is not None:
            return str(self.grammar)
        if self.json_schema is not None:
            return "--json-schema" if _is_schema(self.json_schema) else self.json_schema
        return "--regex"


def note_settings(resolved: Resolved) -> None:
    """Say every setting in force that is not the default, and who set it; then the defaults."""
    for name, source in resolved.sources.items():
        if source is not Source.DEFAULT:
            note(f"{name} {_shown(getattr(resolved.sampling, name))} ({source})")
    defaults = [
        f"{name} {_shown(getattr(resolved.sampling, name))}"
        for name, source in resolved.sources.items()
        if source is Source.DEFAULT
    ]
    note("defaults: " + ", ".join(defaults))


def _shown(value: object) -> str:
    return "none" if value is None or value == () else repr(value)


def _is_schema(text: str) -> bool:
    """Tell whether a text is a schema itself and not the name of a file."""
    return text.lstrip()[:1] in {"{", "["} or text.strip() in {"true", "false"}


def _biases(texts: tuple[str, ...], banned: tuple[int, ...]) -> dict[str, Any]:
    """Return the settings of ``ID+BIAS``, as llama.cpp has it; minus infinity bans the token."""
    biases: dict[int, float] = {}
    banned = tuple(banned)
    for text in texts:
        match = _BIAS.fullmatch(text)
        if match is None or match[2] == "+inf":
            raise click.BadParameter(
                f"{text!r} is no bias of a token; give its id and a number, like 15043+1 or "
                f"15043-2.5, or 15043-inf to ban it.",
                param_hint="--logit-bias",
            )
        token, bias = int(match[1]), float(match[2])
        if math.isinf(bias):
            banned = (*banned, token)
        else:
            biases[token] = bias
    settings: dict[str, Any] = {"logit_bias": biases} if biases else {}
    return settings | ({"banned_tokens": banned} if banned else {})
