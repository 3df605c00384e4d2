"""The vocabulary inside a GGUF file: the metadata keys ``tokenizer.ggml.*``.

Source: the GGUF specification in ggml's ``docs/gguf.md``; defaults of missing keys from
llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import filterfalse
from reprlib import repr as shown  # cuts a hostile file's endless string short
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrllama.checkpoints.gguf_metadata import SEPARATOR, StringArray
from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.bpe import BytePairTokenizer
from pyrllama.tokenizer.pretokenizers import pre_tokenizer
from pyrllama.tokenizer.sentencepiece_model import (
    Piece,
    PieceType,
    SentencePieceTokenizer,
    bpe_model,
)
from pyrllama.tokenizer.special import STOP_SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyrllama.tokenizer.base import Tokenizer

_LLAMA_UNKNOWN, _LLAMA_BOS, _LLAMA_EOS = 0, 1, 2
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Make the tokenizer that a GGUF file's metadata describes.

    Raises ``TokenizerError`` for a kind of vocabulary or a pre-tokenizer that is not known, and
    for arrays and ids that contradict each other.
    """
    keys = _Keys(metadata)
    model = keys.text("model")
    if model == "llama":
        return _sentencepiece(keys)
    if model == "gpt2":
        return _byte_pair(keys)
    problem = "the file has no vocabulary" if model is None else f"the vocabulary is {shown(model)}"
    raise TokenizerError(
        f"{problem}; tokenizer.ggml.model must be 'llama' or 'gpt2': name a tokenizer file instead"
    )


def _sentencepiece(keys: _Keys) -> SentencePieceTokenizer:
    """Put pieces, scores and types into a SentencePiece model."""
    texts = keys.strings("tokens")
    scores = keys.numbers("scores", len(texts), "f")
    types = keys.token_types(len(texts))
    unknown = keys.token_id("unknown_token_id", len(texts), _LLAMA_UNKNOWN)
    if unknown is not None and not np.any(types == PieceType.UNKNOWN):
        types[unknown] = PieceType.UNKNOWN
    for gap in [i for i, text in enumerate(texts) if not text]:
        texts[gap], types[gap] = f"[EMPTY_{gap}]", PieceType.UNUSED
    add_space_prefix = keys.flag("add_space_prefix", True)
    return SentencePieceTokenizer(
        bpe_model(map(Piece, texts, scores.tolist(), types.tolist()), add_space_prefix),
        add_space_prefix,
        kind="GGUF SentencePiece BPE",
        bos_id=keys.token_id("bos_token_id", len(texts), _LLAMA_BOS),
        eos_id=keys.token_id("eos_token_id", len(texts), _LLAMA_EOS),
        end_ids=keys.end_ids(len(texts)),
        add_bos=keys.flag("add_bos_token", True),
    )


def _byte_pair(keys: _Keys) -> BytePairTokenizer:
    """Take up the vocabulary and its merges; the ids of special tokens are kept apart."""
    name = keys.text("pre")
    rules = pre_tokenizer(name)
    texts = keys.strings("tokens")
    tokens = dict(zip(texts, range(len(texts)), strict=True))
    if len(tokens) != len(texts):
        raise _wrong("tokens", "holds a token twice")
    ranks = _read_merges(keys.strings("merges"), tokens)
    special = _special_tokens(texts, keys.token_types(len(texts)))
    return BytePairTokenizer(
        tokens,
        lambda left, right: ranks.get(f"{left} {right}"),
        rules,
        control=special[PieceType.CONTROL] | special[PieceType.UNKNOWN],
        user_defined=special[PieceType.USER_DEFINED],
        vocab_size=len(texts),
        kind=f"GGUF {name}",
        bos_id=keys.token_id("bos_token_id", len(texts)),
        eos_id=keys.token_id("eos_token_id", len(texts)),
        end_ids=keys.end_ids(len(texts)),
        add_bos=keys.flag("add_bos_token", rules.add_bos),
    )


def _special_tokens(texts: list[str], types: NDArray[Any]) -> dict[PieceType, dict[str, int]]:
    """Return what is no ordinary token: by type, its spelling and id."""
    special: dict[PieceType, dict[str, int]] = {kind: {} for kind in PieceType}
    for i in np.flatnonzero(types != PieceType.NORMAL).tolist():
        kind = PieceType(types[i])
        # Some converters give the end of a turn the type of a token that users may write.
        if kind == PieceType.USER_DEFINED and texts[i] in STOP_SPELLINGS:
            kind = PieceType.CONTROL
        special[kind][texts[i]] = i
    return special


def _read_merges(merges: list[str], tokens: Mapping[str, int]) -> dict[str, int]:
    """Return the rank of every merge ``"left right"``, whose outcome must be a token.

    Spelled bytes hold neither spaces nor line ends, so all merges are joined at once.
    """
    joined = "\n".join(merges)
    letters = np.frombuffer(joined.encode(), np.uint8)
    between = letters[(letters == ord(" ")) | (letters == ord("\n"))].tobytes()
    if between != (b" \n" * len(merges))[:-1]:
        raise _wrong("merges", "holds a merge that is not two words")
    outcomes = joined.replace(" ", "").split("\n")
    missing = next(filterfalse(tokens.__contains__, outcomes), None)
    if missing is not None:
        raise _wrong("merges", f"makes {shown(missing)}, which is no token")
    ranks = dict(zip(merges, range(len(merges)), strict=True))
    if len(ranks) != len(merges):
        raise _wrong("merges", "holds a merge twice")
    return ranks


class _Keys:
    """Typed access to the keys ``tokenizer.ggml.*``."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def text(self, key: str) -> str | None:
        """Return a string, None where the key is missing."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise _wrong(key, f"is {shown(value)}, not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = self._get(key)
        if value is not None and not isinstance(value, int):
            raise _wrong(key, f"is {shown(value)}, not a truth value")
        return default if value is None else bool(value)

    def token_id(self, key: str, n_tokens: int, default: int | None = None) -> int | None:
        """Return the id of a token; the default counts only if the vocabulary is that large."""
        value = self._get(key)
        if value is None:
            return default if default is not None and default < n_tokens else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_tokens:
            raise _wrong(key, f"is {shown(value)}, but there are {n_tokens} tokens")
        return value

    def end_ids(self, n_tokens: int) -> list[int]:
        """Return the ids that the file names as ends."""
        ids = [self.token_id(key, n_tokens) for key in _END_KEYS]
        return [token for token in ids if token is not None]

    def strings(self, key: str) -> list[str]:
        """Return an array of strings, which must be UTF-8 and at least one."""
        value = self._get(key)
        if isinstance(value, StringArray) and (text := value.joined()) is not None:
            return text.split(SEPARATOR)
        texts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if set(map(type, texts)) != {str}:
            raise _wrong(key, "is not an array of strings")
        raw = getattr(value, "raw", None)
        if raw is not None and "\ufffd" in "".join(texts):
            # The reader puts U+FFFD for broken bytes, but a vocabulary may have that token.
            broken = [
                i for i, text in enumerate(texts) if "\ufffd" in text and not _is_utf8(raw(i))
            ]
            if broken:
                raise _wrong(key, f"holds a string that is not UTF-8 at index {broken[0]}")
        return texts

    def token_types(self, n_tokens: int) -> NDArray[Any]:
        """Return a ``PieceType`` for every token, ``NORMAL`` where the file has none."""
        if self._get("token_type") is None:
            return np.full(n_tokens, PieceType.NORMAL)
        types = self.numbers("token_type", n_tokens, "iu").copy()
        if types.min() < min(PieceType) or types.max() > max(PieceType):
            raise _wrong("token_type", f"holds a type out of {min(PieceType)} to {max(PieceType)}")
        return types

    def numbers(self, key: str, n_tokens: int, kinds: str) -> NDArray[Any]:
        """Return an array with one number, finite as a 32-bit float, for every token."""
        value = self._get(key)
        if isinstance(value, StringArray):  # NumPy would make all as long as the longest
            value = None
        try:
            array = np.asarray(value)
        except ValueError:  # Lists in a list, of different lengths.
            array = np.empty(0)
        if array.shape != (n_tokens,) or array.dtype.kind not in kinds:
            raise _wrong(key, f"is not one number for each of the {n_tokens} tokens")
        if not np.all(np.abs(array) <= np.finfo(np.float32).max):
            raise _wrong(key, "holds a number that is not finite")
        return array

    def _get(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _wrong(key: str, problem: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.ggml.{key} {problem}; convert the model again")
