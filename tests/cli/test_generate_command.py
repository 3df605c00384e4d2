"""``rllama generate``: text, colours, figures, JSON, and the commands of March 2023."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_model import ByteTokenizer, FakeModel

import pyrllama
from pyrllama.errors import SettingError
from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside"
UP_TO_STORY = ("--prompt", "", "--temperature", "0", "--max-tokens", "21")


def test_the_bare_form_generates(run: Run, stories: Path) -> None:
    bare = run("--model-path", stories, *UP_TO_STORY)
    named = run("generate", "--model-path", stories, *UP_TO_STORY)
    assert bare.status == named.status == 0
    assert bare.out == named.out
    assert STORY.startswith(bare.out.rstrip("\n"))
    assert bare.out.startswith("Once upon a time")


def test_prompt_and_text_are_printed_and_figures_follow(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, "--prompt", "Once upon", *UP_TO_STORY[2:], "--seed", "5")
    assert done.out.startswith("Once upon a time, there was a little girl")
    assert done.out.endswith("\n")
    assert "\x1b" not in done.out + done.err
    for figure in ("prompt ", " tokens/s", " ms/token", " GB/s", " memory", "seed 5"):
        assert figure in done.err
    memory, _ = done.err.splitlines()
    assert memory.startswith("the model needs ")


def test_quiet_prints_the_generated_text_alone(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, "--prompt", "Once upon", *UP_TO_STORY[2:], "-q")
    assert done.out.startswith(" a time, there was a little girl")
    assert done.err == ""


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_golden_text(run: Run, stories: Path, golden: str, backend: str) -> None:
    done = run(
        "--model-path", stories, "--prompt", "", "--temperature", "0", "--max-tokens", "200", "-q",
        "--backend", backend,
    )  # fmt: skip
    assert done.out == golden.rstrip("\n") + "\n"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> str:
    """Return the text that llama2.c's own test expects."""
    path: Path = request.config.rootpath / "tests" / "golden" / "stories260K.txt"
    return path.read_text(encoding="utf-8")


def test_the_commands_of_march_2023(run: Run, fake: dict[str, Any]) -> None:
    path = "/LLaMA/13B"
    first = run(
        "--tokenizer-path", "/LLaMA/tokenizer.model", "--model-path", path, "--param-path",
        path + "/params.json", "--f16", "--prompt", "The meaning of life is",
    )  # fmt: skip
    assert first.status == 0
    assert first.out.startswith("The meaning of life is")
    assert str(fake["tokenizer_path"]) == "/LLaMA/tokenizer.model"
    assert str(fake["param_path"]) == path + "/params.json"
    assert fake["quantize"].name == "F16"
    second = run(
        "--model-path", path, "--param-path", path + "/params.json", "--tokenizer-model",
        "/LLaMA/tokenizer.model", "--prompt", "Computers are pretty complica", "--max-seq-len",
        "50",
    )  # fmt: skip
    assert second.status == 0
    assert (fake["max_seq_len"], fake["quantize"]) == (50, None)
    assert str(fake["tokenizer_path"]) == "/LLaMA/tokenizer.model"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace ``load`` by one that notes its settings and gives a fake model."""
    settings: dict[str, Any] = {"model": FakeModel()}

    def load(path: Path, **given: Any) -> Llama:
        settings.update(given, path=path)
        return Llama(settings["model"], ByteTokenizer(), given["max_seq_len"] or 64)

    monkeypatch.setattr("pyrllama.cli.model.load", load)
    return settings


def test_defaults_are_the_originals(run: Run, fake: dict[str, Any]) -> None:
    report = json.loads(run("--model-path", "m", "--prompt", "x", "--json").out)
    settings = report["settings"]
    assert settings["temperature"] == 1.0
    assert settings["top_k"] == 20
    assert settings["top_p"] == 1.0
    assert settings["repetition_penalty"] == 1.0
    assert fake["max_seq_len"] is None
    assert fake["threads"] is None


def test_settings_reach_the_sampler(run: Run, fake: dict[str, Any]) -> None:
    done = run(
        "--model-path", "m", "--prompt", "x", "--json", "--temperature", "0.5", "--top-k", "3",
        "--top-p", "0.9", "--repetition-penalty", "0.8", "--seed", "11", "--max-tokens", "4",
        "--max-threads", "2", "--quantize", "Q8_0",
    )  # fmt: skip
    report = json.loads(done.out)
    assert report["settings"].items() >= {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "repetition_penalty": 0.8, "seed": 11,
        "max_tokens": 4, "max_seq_len": 64, "threads": 2, "backend": "reference",
    }.items()  # fmt: skip
    given = {name for name, source in report["sources"].items() if source == "flag"}
    assert given == {"temperature", "top_k", "top_p", "repetition_penalty", "seed"}
    assert fake["threads"] == 2
    assert fake["quantize"].name == "Q8_0"
    assert len(report["tokens"]) == len(report["logprobs"]) == 4


def test_json_is_all_there_is_on_standard_output(run: Run, stories: Path) -> None:
    done = run("--model-path", stories, *UP_TO_STORY, "--json")
    report = json.loads(done.out)
    assert STORY.startswith(report["text"])
    assert report["prompt_tokens"] == [1]
    assert report["finish"] == "length"
    assert report["timings"]["generated_tokens"] == 21
    assert report["timings"]["prompt_tokens_per_second"] > 0
    assert report["model"]["dim"] == 64
    assert report["versions"]["pyrllama"] == pyrllama.__version__
    assert done.err == ""


def test_a_seed_reproduces_the_text(run: Run, stories: Path) -> None:
    settings = ("--model-path", stories, "--prompt", "Tom", "--max-tokens", "20", "--json")
    first = json.loads(run(*settings).out)
    again = json.loads(run(*settings, "--seed", str(first["seed"])).out)
    other = json.loads(run(*settings, "--seed", "1").out)
    assert again["tokens"] == first["tokens"]
    assert other["tokens"] != first["tokens"]


def test_the_prompt_comes_from_a_file_or_standard_input(
    run: Run, fake: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("é\n".encode())
    assert run("--model-path", "m", "--prompt-file", file).out.startswith("é\n")
    stdin = io.TextIOWrapper(io.BytesIO("ü".encode()), encoding="ascii")
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("--model-path", "m", "--prompt-file", "-").out.startswith("ü")


def test_a_terminal_tells_prompt_and_text_apart(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = run("--model-path", "m", "--prompt", "Once")
    assert coloured.out.startswith("\x1b[36mOnce\x1b[0m")
    assert coloured.out.count("\x1b") == 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("--model-path", "m", "--prompt", "Once").out


def test_a_terminal_is_not_sent_control_codes(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake["model"] = FakeModel(script={5: 0x1B, 6: ord("\n"), 7: 7})
    settings = ("--model-path", "m", "--prompt", "Once", "--max-tokens", "3", "-q")
    assert run(*settings, "--temperature", "0").out == "\x1b\n\x07\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    fake["model"] = FakeModel(script={5: 0x1B, 6: ord("\n"), 7: 7})
    assert run(*settings, "--temperature", "0").out == "\N{REPLACEMENT CHARACTER}\n" * 2


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_the_text_so_far(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    model = fake["model"]
    forward = model.forward

    def interrupted(batch: Any) -> Any:
        if len(model.batches) == 4:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(model, "forward", interrupted)
    settings = ("--model-path", "m", "--prompt", "Once", "--temperature", "0")
    done = run(*settings, *(["--json"] if as_json else []))
    assert done.status == 130
    assert model.closed
    if as_json:
        report = json.loads(done.out)
        assert report["finish"] == "cancelled"
        assert len(report["text"]) == 4
    else:
        assert len(done.out) == len("Once") + 4 + 1
        assert done.out.endswith("\n")
        assert "ms/token" in done.err


@pytest.mark.parametrize("moment", ["load", "prompt"])
def test_an_interruption_before_the_first_token(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    if moment == "prompt":
        fake["model"].error = KeyboardInterrupt()
    else:
        monkeypatch.setattr("pyrllama.cli.model.load", _interrupt)
    done = run("--model-path", "m", "--prompt", "Once")
    assert done.status == 130
    assert "Traceback" not in done.err


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_progress_bar_shows_on_a_terminal_only(
    run: Run, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--model-path", "m", "--prompt", "x")
    assert fake["progress"] is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    run("--model-path", "m", "--prompt", "x", "-q")
    assert fake["progress"] is None
    run("--model-path", "m", "--prompt", "x")
    assert callable(fake["progress"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--f16", "--quantize", "q8_0"], "--f16 and --quantize q8_0"),
        (["--f16", "--f32"], "--f16 and --f32"),
        (["--bf16", "--f32"], "--f32 and --bf16"),
    ],
)
def test_two_types_contradict_each_other(
    run: Run, fake: dict[str, Any], flags: list[str], named: str
) -> None:
    done = run("--model-path", "m", "--prompt", "x", *flags)
    assert done.status == 2
    assert named in done.err


@pytest.mark.parametrize("flag", ["f16", "f32", "bf16"])
def test_each_type_has_a_flag(run: Run, fake: dict[str, Any], flag: str) -> None:
    assert run("--model-path", "m", "--prompt", "x", f"--{flag}").status == 0
    assert fake["quantize"].name == flag.upper()


def test_help_states_the_penalty_and_the_quiet_mode(run: Run) -> None:
    text = " ".join(run("generate", "--help").out.split())
    assert "PENALTY^occurrences" in text
    assert "under 1.0 penalise" in text
    assert "A negative logit is divided instead" in text
    assert "Print the generated text alone" in text


def test_setting_errors_come_from_the_settings(run: Run, fake: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        pyrllama.Sampling(top_p=2.0)
    done = run("--model-path", "m", "--prompt", "x", "--top-p", "2")
    assert done.err == f"error: {caught.value}\n"
