"""SentencePiece models: as files (LLaMA 1 and 2, Mistral) and built from pieces and scores.

GGUF and llama2.c store a SentencePiece vocabulary without the model around it.  It is put into
a model again here, so that one implementation, the original one, makes the ids of all three.

Source: ``sentencepiece_model.proto`` of the SentencePiece project for the field numbers.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from pyrllama.errors import TokenizerError
from pyrllama.tokenizer.base import Tokenizer
from pyrllama.tokenizer.protobuf import bytes_field, fields, float_field, varint_field
from pyrllama.tokenizer.special import SpecialTokens, stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentencepiece import SentencePieceProcessor

SPACE_MARKER = "\u2581"
"""What stands for a space inside a piece."""

UNKNOWN_TEXT = " \u2047 "
"""What an unknown piece adds to a text; SentencePiece's default."""


class PieceType(enum.IntEnum):
    """What a piece is for; GGUF's ``tokenizer.ggml.token_type`` has the same codes."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(enum.IntEnum):
    """How a model cuts a text into pieces (``TrainerSpec.model_type``)."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class _ModelField(enum.IntEnum):
    PIECES = 1
    TRAINER_SPEC = 2
    NORMALIZER_SPEC = 3


class _PieceField(enum.IntEnum):
    PIECE = 1
    SCORE = 2
    TYPE = 3


class _TrainerField(enum.IntEnum):
    MODEL_TYPE = 3
    BYTE_FALLBACK = 35


class _NormalizerField(enum.IntEnum):
    NAME = 1
    ADD_DUMMY_PREFIX = 3
    REMOVE_EXTRA_WHITESPACES = 4
    ESCAPE_WHITESPACES = 5


class Piece(NamedTuple):
    """A piece as a vocabulary holds it; a space may be written plainly or as the marker."""

    text: str
    score: float
    type: int
    """A ``PieceType``."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model run by the ``sentencepiece`` library."""

    def __init__(
        self,
        model: bytes,
        add_space_prefix: bool,
        *,
        kind: str,
        bos_id: int | None = None,
        eos_id: int | None = None,
        end_ids: Iterable[int] = (),
        add_bos: bool = True,
    ) -> None:
        """Load a serialised model; ids that are not given are those the model names.

        ``add_space_prefix`` tells whether the model puts a space before every text.  Raises
        ``TokenizerError`` for bytes that are no such model.
        """
        self._model = _load(model)
        self.vocab_size = self._model.vocab_size()
        self._pieces = _pieces(self._model)
        ids = range(self.vocab_size)
        self._control = frozenset(i for i in ids if self._model.is_control(i))
        special = {self._pieces[i]: i for i in self._control}
        self.bos_id = _known(self._model.bos_id()) if bos_id is None else bos_id
        self.eos_id = _known(self._model.eos_id()) if eos_id is None else eos_id
        self.stop_ids = stop_ids(special, (self.eos_id, *end_ids))
        self.add_bos = add_bos and self.bos_id is not None
        self.kind = kind
        self.drops_first_space = add_space_prefix
        unknown = self._model.unk_id()
        self._special = SpecialTokens(special | {self._pieces[unknown]: unknown})

    def _encode(self, text: str, special: bool) -> list[int]:
        if not special:
            return list(self._model.encode(text))
        ids: list[int] = []
        for part in self._special.split(text):
            ids += [part] if isinstance(part, int) else self._model.encode(part)
        return ids

    def _token_bytes(self, token: int) -> bytes:
        if token in self._control:
            return b""
        piece = self._pieces[token]
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0xNN>
        if self._model.is_unknown(token):
            return UNKNOWN_TEXT.encode()
        return piece.replace(SPACE_MARKER, " ").encode()


_MODEL_TYPE_NAMES = {
    ModelType.UNIGRAM: "Unigram",
    ModelType.BPE: "BPE",
    ModelType.WORD: "words",
    ModelType.CHAR: "characters",
}


def read_sentencepiece(data: bytes) -> SentencePieceTokenizer:
    """Read a ``.model`` file's content; raises ``TokenizerError`` where it is broken."""
    model_type, add_space_prefix = read_specs(data)
    kind = f"SentencePiece {_MODEL_TYPE_NAMES[model_type]}"
    return SentencePieceTokenizer(data, add_space_prefix, kind=kind)


def bpe_model(pieces: Iterable[Piece], add_space_prefix: bool) -> bytes:
    """Serialise a SentencePiece BPE model out of its pieces, in the order of their ids."""
    vocabulary = []
    byte_fallback = False
    for piece in pieces:
        byte_fallback |= piece.type == PieceType.BYTE
        # Matching happens after spaces have become markers, so pieces need them as well.
        plain = piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
        text = piece.text.replace(" ", SPACE_MARKER) if plain else piece.text
        vocabulary.append(
            bytes_field(
                _ModelField.PIECES,
                bytes_field(_PieceField.PIECE, text.encode())
                + float_field(_PieceField.SCORE, piece.score)
                + varint_field(_PieceField.TYPE, piece.type),
            )
        )
    trainer = varint_field(_TrainerField.MODEL_TYPE, ModelType.BPE)
    trainer += varint_field(_TrainerField.BYTE_FALLBACK, byte_fallback)
    normalizer = bytes_field(_NormalizerField.NAME, b"identity")
    normalizer += varint_field(_NormalizerField.ADD_DUMMY_PREFIX, add_space_prefix)
    normalizer += varint_field(_NormalizerField.REMOVE_EXTRA_WHITESPACES, False)
    normalizer += varint_field(_NormalizerField.ESCAPE_WHITESPACES, True)
    vocabulary.append(bytes_field(_ModelField.TRAINER_SPEC, trainer))
    vocabulary.append(bytes_field(_ModelField.NORMALIZER_SPEC, normalizer))
    return b"".join(vocabulary)


def read_specs(model: bytes) -> tuple[ModelType, bool]:
    """Read the type and whether a space is put before texts.

    A file that was cut between two pieces is recognised by the absence of the specs behind them:
    that, and whatever else is broken in them, raises ``TokenizerError``.
    """
    try:
        specs = {number: value for number, value in fields(model) if number != _ModelField.PIECES}
        trainer = _message(specs, _ModelField.TRAINER_SPEC)
        normalizer = _message(specs, _ModelField.NORMALIZER_SPEC)
        model_type = ModelType(_number(trainer, _TrainerField.MODEL_TYPE, ModelType.UNIGRAM))
        return model_type, bool(_number(normalizer, _NormalizerField.ADD_DUMMY_PREFIX, 1))
    except ValueError as error:
        raise TokenizerError(
            f"the SentencePiece model is cut or broken ({error}); fetch it again"
        ) from None


def _message(specs: dict[int, int | bytes], number: _ModelField) -> dict[int, int | bytes]:
    value = specs.get(number)
    if isinstance(value, bytes):
        return dict(fields(value))
    raise ValueError(f"it has no {number.name.lower()}")


def _number(message: dict[int, int | bytes], number: int, default: int) -> int:
    value = message.get(number, default)
    if isinstance(value, int):
        return value
    raise ValueError(f"field {number} is not a number")


def _load(model: bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - takes 70 ms

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"not a SentencePiece model that can be used: {error}") from None
    return processor


def _pieces(model: SentencePieceProcessor) -> list[str]:
    try:
        return [model.id_to_piece(i) for i in range(model.vocab_size())]
    except UnicodeDecodeError:
        raise TokenizerError(
            "a piece of the SentencePiece model is not UTF-8; fetch it again"
        ) from None


def _known(token: int) -> int | None:
    """Read SentencePiece's -1 as "there is none"."""
    return token if token >= 0 else None
