"""GPT-2's alphabet: every byte as one printable character, so that a token is a word of text.

``tokenizer.json`` and GGUF spell byte-level tokens in it.  Bytes that Latin-1 prints stand for
themselves, the other 68 for the characters from U+0100 on, in order.  Source: the released code
of GPT-2 (``bytes_to_unicode``).
"""

from __future__ import annotations


def _characters() -> dict[int, int]:
    """Map each of the 256 bytes to its character."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printed]
    return {byte: byte for byte in printed} | {byte: 256 + i for i, byte in enumerate(rest)}


_TO_ALPHABET = _characters()
_TO_BYTE = {character: byte for byte, character in _TO_ALPHABET.items()}


def spell(data: bytes) -> str:
    """Return bytes as characters of the alphabet, one each."""
    return data.decode("latin-1").translate(_TO_ALPHABET)


def unspell(word: str) -> bytes:
    """Return the bytes of a word; one with characters of no byte stands for its own UTF-8."""
    try:
        return bytes(map(_TO_BYTE.__getitem__, map(ord, word)))
    except KeyError:
        return word.encode()
