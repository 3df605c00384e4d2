"""Hugging Face's ``tokenizer.json``, run by the ``tokenizers`` library.

The file holds the vocabulary, the merges and every step around them; which token is BOS and
whether prompts start with it stands in files beside it, or in its post-processor.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.base import Tokenizer
from pyrllama.tokenizer.byte_alphabet import unspell
from pyrllama.tokenizer.sentencepiece_model import SPACE_MARKER
from pyrllama.tokenizer.special import stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TOKENIZER_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_MODEL_FILES = ("config.json", "generation_config.json")


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``; whatever normaliser and pre-tokenizer it names are applied."""

    kind = "tokenizer.json"

    def __init__(self, data: bytes, folder: Path) -> None:
        """Read the file's content and, in its folder, what says how the model uses it.

        Raises ``TokenizerError`` for a file that is no tokenizer or joins its tokens in a way
        that cannot be done one by one.
        """
        self._model = _load(data)
        self._lock = threading.Lock()
        self._decoder = _Decoder(self._model)
        self.drops_first_space = self._decoder.drops_first_space
        added = self._model.get_added_tokens_decoder()
        self._added = {i: b"" if t.special else t.content.encode() for i, t in added.items()}
        self.vocab_size = 1 + max(self._model.get_vocab().values(), default=-1)
        self._set_roles({token.content: i for i, token in added.items()}, folder)

    def _set_roles(self, special: dict[str, int], folder: Path) -> None:
        """Decide which tokens are BOS, EOS and ends; a spelling goes before a number."""
        of_tokenizer = _read_settings(folder, _TOKENIZER_FILES)
        of_model = _read_settings(folder, _MODEL_FILES)
        opening = self._opening_token()
        bos = (self._id_of(of_tokenizer, "bos_token"), *self._ids(of_model, "bos_token_id"))
        eos = (self._id_of(of_tokenizer, "eos_token"), *self._ids(of_model, "eos_token_id"))
        self.stop_ids = stop_ids(special, eos)
        self.bos_id = _first(*bos, opening)
        self.eos_id = _first(*eos, *sorted(self.stop_ids))
        wanted = of_tokenizer.get("add_bos_token")
        if not isinstance(wanted, bool):
            wanted = opening == self.bos_id
        self.add_bos = wanted and self.bos_id is not None

    def spellings(self) -> dict[str, int]:
        """Return every token as the vocabulary spells it, added ones included, with its id."""
        return dict(self._model.get_vocab(with_added_tokens=True))

    def _encode(self, text: str, special: bool) -> list[int]:
        # The library takes the choice as a state, not as an argument.
        with self._lock, _named_errors("the tokenizer.json fails on this text"):
            self._model.encode_special_tokens = not special
            return list(self._model.encode(text, add_special_tokens=False).ids)

    def _token_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        piece = self._model.id_to_token(token)
        return b"" if piece is None else self._decoder.piece_bytes(piece)

    def _opening_token(self) -> int | None:
        """Return the special token that the post-processor puts before every text."""
        with _named_errors("the post-processor of this tokenizer.json is broken"):
            ids = self._model.encode("", add_special_tokens=True).ids
        return ids[0] if ids and self._added.get(ids[0]) == b"" else None

    def _id_of(self, settings: dict[str, Any], name: str) -> int | None:
        """Return the id of the token whose spelling is set."""
        spelling = settings.get(name)
        if isinstance(spelling, dict):
            spelling = spelling.get("content")
        if not isinstance(spelling, str):
            return None
        with _named_errors(f"the {name} beside it is no text"):  # but a lone surrogate, say
            token = self._model.token_to_id(spelling)
        return None if token is None else int(token)

    def _ids(self, settings: dict[str, Any], key: str) -> list[int]:
        """Return the ids under a key that holds one or several."""
        value = settings.get(key)
        ids = value if isinstance(value, list) else [value]
        return [i for i in ids if type(i) is int and 0 <= i < self.vocab_size]


class _Decoder:
    """How a piece becomes bytes: in GPT-2's byte alphabet, or with space markers."""

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        state = json.loads(model.decoder.__getstate__()) if model.decoder else {}
        steps = {step["type"]: step for step in _flatten(state)}
        self._in_bytes = "ByteLevel" in steps
        self._byte_fallback = "ByteFallback" in steps
        if not self._in_bytes and not {"Metaspace", "Replace"} & set(steps):
            names = ", ".join(sorted(steps)) or "none"
            raise TokenizerError(
                f"the decoder of this tokenizer.json ({names}) is not one that is known; use the "
                f"model's tokenizer.model"
            )
        strips = steps.get("Strip", {})
        self.drops_first_space = (
            strips.get("content") == " " and strips.get("start", 0) > 0
        ) or steps.get("Metaspace", {}).get("prepend_scheme", "never") != "never"

    def piece_bytes(self, piece: str) -> bytes:
        """Return what a piece of the vocabulary adds to a text."""
        if self._in_bytes:
            return unspell(piece)
        if self._byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        return piece.replace(SPACE_MARKER, " ").encode()


def _first(*tokens: int | None) -> int | None:
    """Return the first id that is known."""
    return next((token for token in tokens if token is not None), None)


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Go through the steps of a decoder, those of sequences included."""
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _flatten(step)
    elif decoder:
        yield decoder


def _load(data: bytes) -> tokenizers.Tokenizer:
    import tokenizers  # noqa: PLC0415 - takes 110 ms

    with _named_errors("the JSON is not a tokenizer"):
        model = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    model.no_truncation()
    model.no_padding()
    return model


@contextmanager
def _named_errors(problem: str) -> Iterator[None]:
    """Turn what the library raises, which is as wide as can be, into ``TokenizerError``."""
    try:
        yield
    except BaseException as error:
        # A panic inside the library is a BaseException of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{problem}: {error}; fetch it again") from None


def _read_settings(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Join the settings of the files that there are; a later file goes before an earlier one."""
    settings: dict[str, Any] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise TokenizerError(f"{name} beside it cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise TokenizerError(f"{name} beside it is not a JSON object")
        settings |= {key: value for key, value in content.items() if value is not None}
    return settings
