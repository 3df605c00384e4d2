"""Stop texts: the text up to the first one, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrllama.chat.stops import StopTexts


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        ((), ["a", "b"], ["a", "b", ""], None),
        (("END",), ["a E", "N", "D b"], ["a ", "", "", ""], "END"),
        (("END",), ["a E", "N", "x"], ["a ", "", "ENx", ""], None),
        (("END",), ["a EN"], ["a ", "EN"], None),
        (("b", "ab"), ["xab"], ["x", ""], "ab"),
        (("# A:", "\n# A:"), ["yes\n#", " A: no"], ["yes", "", ""], "\n# A:"),
        (("ab", "abc"), ["abc"], ["", ""], "abc"),
        (("",), ["a"], ["a", ""], None),
        (("aab",), ["aa", "aab", "a"], ["", "aa", "", ""], "aab"),
    ],
)  # fmt: skip
def test_pieces(
    stops: tuple[str, ...], pieces: list[str], shown: list[str], found: str | None
) -> None:
    texts = StopTexts(stops)
    assert [*map(texts.push, pieces), texts.flush()] == shown
    assert texts.found == found


@settings(deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("abc", max_size=3), max_size=12),
)
def test_what_is_shown_is_the_text_before_the_first(stops: list[str], pieces: list[str]) -> None:
    texts = StopTexts(stops)
    shown = "".join(map(texts.push, pieces)) + texts.flush()
    text = "".join(pieces)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if texts.found is None:
        assert not ends
        assert shown == text
    else:
        # One that began earlier may have ended later; what was shown holds none.
        assert text.startswith(shown + texts.found)
        assert not any(stop in shown for stop in stops)
