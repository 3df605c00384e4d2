"""tiktoken's vocabulary files: Llama 3's ``tokenizer.model`` and Qwen's ``qwen.tiktoken``.

A line holds a token's bytes in base64 and its rank, which is its id and the order of merging:
two neighbours merge if their bytes together are a token.  The file tells neither the pattern
of words nor the special tokens; the number of its lines says whose it is.

Sources: Meta's ``llama-models`` (``models/llama3/tokenizer.py``), whose ids are those of Llama
3, 3.1, 3.2 and 3.3 while the names of unused ones vary; Qwen's ``tokenization_qwen.py``.
"""

from __future__ import annotations

import binascii
import re
import unicodedata
from dataclasses import dataclass
from itertools import count

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.bpe import BytePairTokenizer
from pyrllama.tokenizer.byte_alphabet import spell
from pyrllama.tokenizer.pretokenizers import LLAMA3, QWEN2, PreTokenizer

_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")

_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2, 246)),
)
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
)


@dataclass(frozen=True, slots=True)
class Family:
    """What a vocabulary file of one family leaves unsaid."""

    name: str
    pre: str
    """GGUF's name for the rules (``tokenizer.ggml.pre``)."""
    rules: PreTokenizer
    special: tuple[str, ...]
    bos: str | None
    eos: str
    composes: bool = False
    """Whether texts are brought into Unicode's composed form (NFC) first."""


_FAMILIES = {
    128_000: Family(
        "Llama 3", "llama-bpe", LLAMA3, _LLAMA3_SPECIAL, "<|begin_of_text|>", "<|end_of_text|>"
    ),
    151_643: Family("Qwen", "qwen2", QWEN2, _QWEN_SPECIAL, None, "<|endoftext|>", composes=True),
}
"""The families by the number of ordinary tokens in their files."""


class TiktokenTokenizer(BytePairTokenizer):
    """A tokenizer of one family over the words of its file."""

    def __init__(self, words: dict[str, int], family: Family) -> None:
        special = dict(zip(family.special, count(len(words)), strict=False))
        super().__init__(
            words,
            lambda left, right: words.get(left + right),
            family.rules,
            control=special,
            user_defined={},
            vocab_size=len(words) + len(special),
            kind=f"tiktoken BPE ({family.name})",
            bos_id=None if family.bos is None else special[family.bos],
            eos_id=special[family.eos],
            add_bos=family.rules.add_bos,
        )
        self._composes = family.composes

    def _encode(self, text: str, special: bool) -> list[int]:
        if self._composes:
            text = unicodedata.normalize("NFC", text)
        return super()._encode(text, special)


def is_tiktoken(data: bytes) -> bool:
    """Tell whether a file starts with a line of base64 and a number."""
    return _FIRST_LINE.match(data) is not None


def read_tiktoken(data: bytes) -> TiktokenTokenizer:
    """Read the file's content; raises ``TokenizerError`` where it is broken or unknown."""
    return TiktokenTokenizer(*read_words(data))


def read_words(data: bytes) -> tuple[dict[str, int], Family]:
    """Return each ordinary token, spelled in the byte alphabet, with its rank, and the family.

    Raises what ``read_tiktoken`` raises.
    """
    words = _read_words(data)
    family = _FAMILIES.get(len(words))
    if family is None:
        known = " and ".join(f"{family.name} ({n})" for n, family in _FAMILIES.items())
        raise TokenizerError(
            f"a tiktoken vocabulary of {len(words)} tokens, but the known ones are {known}; fetch "
            f"it again if it is one of them, or use the model's tokenizer.json"
        )
    for byte in range(256):
        if spell(bytes([byte])) not in words:
            raise TokenizerError(f"no token for the byte 0x{byte:02X}; fetch the file again")
    return words, family


def _read_words(data: bytes) -> dict[str, int]:
    """Return each token, spelled in the byte alphabet, with its rank."""
    cells = data.split()
    coded, ranks = cells[::2], cells[1::2]
    if len(cells) % 2 or data.rstrip().count(b"\n") + 1 != len(ranks):
        raise _broken("not every line is a token and its rank")
    try:
        words = {
            spell(binascii.a2b_base64(cell, strict_mode=True)): int(rank)
            for cell, rank in zip(coded, ranks, strict=True)
        }
    except ValueError as error:
        raise _broken(f"a line is not base64 and a number ({error})") from None
    if len(words) != len(ranks):
        raise _broken(f"{len(ranks) - len(words)} tokens come twice")
    if sorted(words.values()) != list(range(len(words))):
        raise _broken("the ranks repeat or leave holes")
    return words


def _broken(problem: str) -> TokenizerError:
    return TokenizerError(f"the tiktoken vocabulary is broken: {problem}; fetch it again")
