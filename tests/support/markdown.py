"""Takes Markdown pages apart: links, code spans, and blocks of code with what marks them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = "<!-- run -->"
"""Stands before a block that a test runs."""

_FENCED = re.compile(
    rf"^(?P<run>{RUN}\n+)?(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"(?:^(?: {4,}\S.*|[ ]*)$\n?)+", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code, and whether it is to be run."""

    language: str
    code: str
    run: bool


def fenced_blocks(page: str) -> list[Block]:
    """Return the blocks between fences."""
    return [
        Block(found["language"], found["code"], found["run"] is not None)
        for found in _FENCED.finditer(page)
    ]


def without_blocks(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCED.sub("", page)


def code_lines(page: str) -> Iterator[str]:
    """Yield the lines of all blocks, fenced and indented, continuations joined."""
    blocks = [block.code for block in fenced_blocks(page)]
    blocks += _INDENTED.findall(without_blocks(page))
    for block in blocks:
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def code_spans(page: str) -> list[str]:
    """Return what stands between single backticks, line ends as spaces."""
    return [" ".join(span.split()) for span in _SPAN.findall(without_blocks(page))]


def links(page: str) -> list[str]:
    """Return the targets of links, images included."""
    return _LINK.findall(without_blocks(page))


def anchors(page: str) -> set[str]:
    """Return the names of a page's headings as GitHub makes them."""
    titles = (re.sub(r"[`*]", "", title).lower() for title in _HEADING.findall(page))
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}
