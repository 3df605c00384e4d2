"""A fake model to talk with: bytes, and control tokens that templates may put out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.fake_model import BOS, EOS, ByteTokenizer, FakeModel

from pyrllama.chat.template import TemplateSource
from pyrllama.llama import Llama
from pyrllama.tokenizer.special import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

EOT = 7
"""A byte that is a control token of which nobody says that it ends a turn."""
CONTROL = {"<s>": BOS, "</s>": EOS, "<turn>": EOT}
TEMPLATE = TemplateSource(
    "<s>{% for m in messages %}{% if m.role == 'system' %}({{ m.content }})"
    "{% elif m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }}</s>{% endif %}"
    "{% endfor %}",
    "the template of the tests",
)
"""``<s>(system)[question]answer</s>[question]``: every character is one token."""


class ControlTokenizer(ByteTokenizer):
    """One token for every byte, and BOS and EOS under the names of LLaMA's."""

    control = CONTROL

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for part in SpecialTokens(CONTROL).split(text) if special else [text]:
            ids += [part] if isinstance(part, int) else part.encode()
        return ids


def script(prompt: Sequence[int] | str, answer: str, *, end: bool = True) -> dict[int, int]:
    """Return what a ``FakeModel`` needs to answer a prompt, which ends with EOS if ``end``."""
    ids = [*answer.encode(), *([EOS] if end else [])]
    return {len(prompt) + i: token for i, token in enumerate(ids)}


def talking(answers: dict[int, int] | None = None, *, max_seq_len: int = 64) -> Llama:
    """Return a model with a context of so many characters; without answers it writes noise."""
    blocks = -(-max_seq_len // 32)
    return Llama(FakeModel(n_blocks=blocks, script=answers), ControlTokenizer(), max_seq_len)
