"""``--start-interactive``: the conversations of the original RLLaMA."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from support.chat_models import ControlTokenizer
from support.fake_model import BOS, FakeModel

from pyrllama.llama import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Run

VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, terse answers to the human's questions.### Human:"
)


def answers(*pairs: tuple[str, str]) -> dict[int, int]:
    """Return a script that writes the second text behind the first, BOS before all."""
    found: dict[int, int] = {}
    for before, text in pairs:
        found |= {1 + len(before) + i: byte for i, byte in enumerate(text.encode())}
    return found


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Load a fake model that answers as scripted, and note what it is given."""
    first = VICUNA + " Who are you?### Assistant:"
    second = first + " Vicuna.\n### Human: And I?### Assistant:"
    script = answers((first, " Vicuna.\n### Human: x"), (second, " Human.### Human:"))
    seen: list[str] = []

    class Model(FakeModel):
        context: tuple[int, ...] = ()

        def forward(self, batch: Any) -> Any:
            (chunk,) = batch.chunks  # what stands before it was in the cache
            self.context = (*self.context[: chunk.start], *chunk.tokens)
            if len(chunk.tokens) > 1:
                seen.append("".join(chr(i) if i < BOS else "|" for i in self.context))
            return super().forward(batch)

    def load(_: Path, **__: Any) -> Llama:
        model = Model(n_blocks=32, max_batch_tokens=1024, script=script)
        return Llama(model, ControlTokenizer(), 1024)

    monkeypatch.setattr("pyrllama.cli.model.load", load)
    return seen


def test_vicunas_defaults(run: Run, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\nAnd I?\n"))
    done = run("--model-path", "m", "--start-interactive", "--temperature", "0", "-q")
    assert (done.status, done.out, done.err) == (0, "Vicuna.\nHuman.\n", "")
    assert prompts[0] == f"|{VICUNA} Who are you?### Assistant:"
    # The stop text that the model wrote stays in the context, and the next message follows it.
    assert prompts[1] == f"{prompts[0]} Vicuna.\n### Human: And I?### Assistant:"


def test_every_part_can_be_another(
    run: Run, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    done = run(
        "generate", "--model-path", "m", "--start-interactive", "--interactive-system-prompt", "S",
        "--interactive-prompt-prefix", "<", "--interactive-prompt-postfix", ">",
        "--interactive-stop", "\x00", "--interactive-stop", "\x01", "--max-tokens", "2",
        "--temperature", "0",
    )  # fmt: skip
    assert done.status == 0
    answer = done.out.splitlines()[0]
    assert prompts[0] == "|S<a>"
    assert prompts[1].endswith(f"{answer}\x00<b>")


def test_a_prompt_beside_it_is_refused(run: Run) -> None:
    done = run("--start-interactive", "--prompt", "x")
    assert done.status == 2
    assert "--start-interactive takes no prompt; --interactive-system-prompt is what" in done.err
