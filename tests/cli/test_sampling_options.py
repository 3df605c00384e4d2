"""The options that say how tokens are chosen, where a text ends, and what it matches."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner
from support.fake_model import EOS, ByteTokenizer, FakeModel

from pyrllama.cli.sampling_options import SamplingOptions, sampling_options
from pyrllama.core import Sampling
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

PROMPT = ("--model-path", "m", "--prompt", "x")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace ``load`` by one that gives a fake model with settings of its own."""
    given: dict[str, Any] = {"script": {}, "settings": {}}

    def load(path: Path, **settings: Any) -> Llama:
        given["asked"] = settings
        model = FakeModel(script={2 + i: token for i, token in enumerate(given["script"])})
        return Llama(model, ByteTokenizer(), 64, model_settings=given["settings"])

    monkeypatch.setattr("pyrllama.cli.model.load", load)
    return given


def parsed(*arguments: str) -> SamplingOptions:
    """Return the options that a command of only these has of its arguments."""
    found: list[SamplingOptions] = []

    @click.command()
    @sampling_options()
    def command(**values: Any) -> int:
        found.append(SamplingOptions.taken_from(values))
        assert not values
        return 0

    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    return found[0]


def test_nothing_given_is_nothing_set() -> None:
    assert parsed().flags == {}
    assert parsed().model_sampling


EACH: dict[str, tuple[str, str, Any]] = {
    "--temperature": ("temperature", "0.5", 0.5),
    "--temp": ("temperature", "0.5", 0.5),
    "--top-p": ("top_p", "0.9", 0.9),
    "--top-k": ("top_k", "0", 0),
    "--min-p": ("min_p", "0.1", 0.1),
    "--typical-p": ("typical_p", "0.9", 0.9),
    "--typical": ("typical_p", "0.9", 0.9),
    "--top-n-sigma": ("top_n_sigma", "1.5", 1.5),
    "--top-nsigma": ("top_n_sigma", "-1", -1.0),
    "--xtc-probability": ("xtc_probability", "0.5", 0.5),
    "--xtc-threshold": ("xtc_threshold", "0.2", 0.2),
    "--dynatemp-range": ("dynatemp_range", "0.3", 0.3),
    "--dynatemp-exp": ("dynatemp_exponent", "2", 2.0),
    "--repetition-penalty": ("repetition_penalty", "0.9", 0.9),
    "--repeat-penalty": ("repeat_penalty", "1.1", 1.1),
    "--repeat-last-n": ("repeat_last_n", "-1", -1),
    "--presence-penalty": ("presence_penalty", "0.1", 0.1),
    "--frequency-penalty": ("frequency_penalty", "0.1", 0.1),
    "--dry-multiplier": ("dry_multiplier", "0.8", 0.8),
    "--dry-base": ("dry_base", "2", 2.0),
    "--dry-allowed-length": ("dry_allowed_length", "3", 3),
    "--dry-penalty-last-n": ("dry_penalty_last_n", "64", 64),
    "--dry-sequence-breaker": ("dry_sequence_breakers", ";", (";",)),
    "--mirostat": ("mirostat", "2", 2),
    "--mirostat-ent": ("mirostat_tau", "3", 3.0),
    "--mirostat-lr": ("mirostat_eta", "0.2", 0.2),
    "--logit-bias": ("logit_bias", "7-2.5", ((7, -2.5),)),
    "--ban-token": ("banned_tokens", "7", (7,)),
    "--samplers": ("samplers", "top-k;temp", ("top_k", "temperature")),
    "--min-tokens": ("min_tokens", "3", 3),
    "--seed": ("seed", "0", 0),
}


@pytest.mark.parametrize("flag", EACH)
def test_each_flag_sets_its_field(flag: str, fake: dict[str, Any]) -> None:
    name, text, value = EACH[flag]
    options = parsed(flag, text)
    assert list(options.flags) == [name]
    llama = Llama(FakeModel(), ByteTokenizer(), 64)
    assert options.resolved(llama).sampling == dataclasses.replace(Sampling(), **{name: value})


def test_every_field_has_a_flag() -> None:
    fields = {name for name, _, _ in EACH.values()} | {"ignore_eos"}
    assert fields == set(Sampling.__dataclass_fields__)
    assert parsed("--ignore-eos").flags == {"ignore_eos": True}


def test_a_bias_of_minus_infinity_bans() -> None:
    options = parsed("--logit-bias", "7-inf", "--logit-bias", "8+.5", "--ban-token", "9")
    assert options.flags == {"banned_tokens": (9, 7), "logit_bias": {8: 0.5}}


@pytest.mark.parametrize("text", ["7", "x+1", "7+inf", "7+1e3", "-1+1"])
def test_a_bias_that_is_none(run: Run, text: str) -> None:
    done = run(*PROMPT, f"--logit-bias={text}")
    assert done.status == 2
    assert "15043+1" in done.err


def test_the_models_settings_stand_behind_the_flags(run: Run, fake: dict[str, Any]) -> None:
    fake["settings"] = {"temperature": 0.25, "top_k": 7}
    report = json.loads(run(*PROMPT, "--json", "--top-k", "9").out)
    assert (report["settings"]["temperature"], report["settings"]["top_k"]) == (0.25, 9)
    assert report["sources"]["temperature"] == "model"
    assert report["sources"]["top_k"] == "flag"
    assert report["sources"]["top_p"] == "default"
    report = json.loads(run(*PROMPT, "--json", "--no-model-sampling").out)
    assert (report["settings"]["temperature"], report["settings"]["top_k"]) == (1.0, 20)


def test_a_models_bad_settings_are_named(run: Run, fake: dict[str, Any]) -> None:
    fake["settings"] = {"temperature": "hot"}
    done = run(*PROMPT)
    assert done.status == 2
    assert "temperature in the model's own settings is 'hot'" in done.err
    assert run(*PROMPT, "--no-model-sampling").status == 0
    assert run(*PROMPT, "--temperature", "1").status == 0


def test_verbose_says_what_is_in_force_and_why(run: Run, fake: dict[str, Any]) -> None:
    fake["settings"] = {"temperature": 0.25}
    done = run(*PROMPT, "--verbose", "-q", "--min-p", "0.1")
    lines = done.err.splitlines()
    assert lines[:2] == ["temperature 0.25 (model)", "min_p 0.1 (flag)"]
    assert lines[2].startswith("defaults: top_k 20, top_p 1.0")


def test_stop_strings(run: Run, fake: dict[str, Any]) -> None:
    fake["script"] = list(b"one. two; three")
    settings = ("-q", "--temperature", "0")
    assert run(*PROMPT, *settings, "--stop", "; ", "--stop", "thr").out == "one. two\n"
    report = json.loads(run(*PROMPT, *settings, "--stop", ".", "--json").out)
    assert (report["text"], report["finish"]) == ("one", "stop")
    assert report["stop_string"] == "."
    assert "stop is ''" in run(*PROMPT, "--stop", "").err


def test_several_continuations(run: Run, fake: dict[str, Any]) -> None:
    settings = ("--n", "3", "--seed", "4", "--temperature", "60", "--top-k", "0")
    done = run(*PROMPT, *settings, "--max-tokens", "5", "--regex", "[a-z]{5}", "-q")
    texts = done.out.splitlines()
    assert len(set(texts)) == 3
    assert done.err == ""
    report = json.loads(
        run(*PROMPT, *settings, "--max-tokens", "5", "--regex", "[a-z]{5}", "--json").out
    )
    assert [completion["text"] for completion in report["completions"]] == texts
    assert [completion["seed"] for completion in report["completions"]] == [4, 5, 6]
    assert report["text"] == texts[0]
    done = run(*PROMPT, "--n", "2", "--max-tokens", "2")
    assert "continuation 1 of 2" in done.err
    assert "continuation 2 of 2" in done.err
    assert run(*PROMPT, "--n", "0").status == 2


def test_room_is_asked_for_all_continuations(run: Run, fake: dict[str, Any]) -> None:
    limit = ("--max-tokens", "20")
    done = run(*PROMPT, "--n", "8", *limit)
    assert (fake["asked"]["texts"], fake["asked"]["text_tokens"]) == (8, 20)
    assert "side by side" not in done.err  # the fake model's 8 blocks hold them
    run(*PROMPT)
    assert (fake["asked"]["texts"], fake["asked"]["text_tokens"]) == (1, None)
    many = run(*PROMPT, "--n", "9", *limit)
    assert "the KV cache holds 8 of 9 continuations at their full length" in many.err
    assert run(*PROMPT, "--n", "9", *limit, "-q").err == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interruption_ends_all_continuations(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    forward = FakeModel.forward

    def interrupted(self: FakeModel, batch: Any) -> Any:
        if len(self.batches) == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(FakeModel, "forward", interrupted)
    done = run(*PROMPT, "--n", "3", *(["--json"] if as_json else ["-q"]))
    assert done.status == 130
    if as_json:
        finishes = [c["finish"] for c in json.loads(done.out)["completions"]]
        assert finishes == ["cancelled"] * 3


def test_the_likeliest_tokens_have_texts(run: Run, fake: dict[str, Any]) -> None:
    fake["script"] = [*b"ab", EOS]
    report = json.loads(run(*PROMPT, "--temperature", "0", "--logprobs", "2", "--json").out)
    assert [top["texts"][0] for top in report["top"]] == ["a", "b", ""]
    assert all(len(top["tokens"]) == len(top["logprobs"]) == 2 for top in report["top"])


def test_structures_from_files_and_arguments(
    run: Run, fake: dict[str, Any], tmp_path: Path
) -> None:
    schema = {"enum": ["red", "blue"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema), encoding="utf-8")
    for source in (json.dumps(schema), str(file)):
        done = run(*PROMPT, "-q", "--json-schema", source)
        assert json.loads(done.out) in {"red", "blue"}
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "yes" | "no"\n', encoding="utf-8")
    assert run(*PROMPT, "-q", "--grammar", grammar).out in {"yes\n", "no\n"}
    done = run(*PROMPT, "-q", "--regex", "[a-c]{3}", "--temperature", "30")
    assert re.fullmatch("[a-c]{3}\n", done.out)


def test_a_text_that_is_cut_off_is_said_to_be(run: Run, fake: dict[str, Any]) -> None:
    done = run(*PROMPT, "-q", "--json-schema", '{"type": "object"}', "--max-tokens", "1")
    assert "cut off before it matched its schema or grammar; raise --max-tokens" in done.err
    assert run(*PROMPT, "-q", "--regex", "a", "--max-tokens", "1").err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json-schema", '{"type": "x"}'], "error: --json-schema: Invalid type: x"),
        (["--json-schema", "nowhere.json"], "error: nowhere.json: the schema cannot be read"),
        (["--regex", "("], "unclosed group"),
        (["--grammar", "nowhere.gbnf"], "error: nowhere.gbnf: the grammar cannot be read"),
        (["--regex", "a", "--json-schema", "{}"], "given only once"),
        (["--samplers", "top_k;top_q"], "samplers is ('top_k', 'top_q')"),
        (["--samplers", "top_k;top_k"], "each once"),
        (["--min-p", "3"], "min_p is 3.0"),
        (["--logprobs", "-1"], "logprobs is -1"),
        (["--ban-token", "9999"], "is 9999, but it must be under 258"),
    ],
)
def test_bad_options_are_named(
    run: Run, fake: dict[str, Any], arguments: list[str], message: str
) -> None:
    done = run(*PROMPT, *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_a_grammar_of_a_file_is_named_with_its_place(
    run: Run, fake: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "bad.gbnf"
    file.write_text('root ::= thing\nthing = "a"\n', encoding="utf-8")
    assert re.search(r"bad\.gbnf: the grammar .* at line 2", run(*PROMPT, "--grammar", file).err)
