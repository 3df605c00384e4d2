"""Stop strings are found wherever pieces are cut, and nothing behind them gets through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrllama.errors import SettingError
from pyrllama.stop_strings import StopStrings


def through(strings: list[str], pieces: list[str]) -> tuple[str, str | None]:
    stops = StopStrings(strings)
    text = "".join(stops.push(piece) for piece in pieces)
    return text + stops.flush(), stops.found


def test_text_is_held_back_while_a_string_may_be_coming() -> None:
    stops = StopStrings(["###", "User:"])
    assert [stops.push(piece) for piece in ("a#", "#b", "Us", "er", " x", "##", "#y")] == [
        "a", "##b", "", "", "User x", "", "",
    ]  # fmt: skip
    assert stops.found == "###"
    assert stops.push("more") == stops.flush() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    assert through(["###"], ["a", "##"]) == ("a##", None)


def test_of_several_the_first_and_then_the_longest_counts() -> None:
    assert through(["bc", "ab"], ["xabc"]) == ("x", "ab")
    assert through(["ab", "abc"], ["xabcd"]) == ("x", "abc")
    assert through(["abc", "ab"], ["x", "ab", "c"]) == ("x", "ab")


def test_without_strings_all_gets_through_at_once() -> None:
    stops = StopStrings([])
    assert stops.push("abc") == "abc"


@pytest.mark.parametrize("bad", ["", 7, None])
def test_a_string_must_be_text(bad: Any) -> None:
    with pytest.raises(SettingError, match="stop is "):
        StopStrings([bad])


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=3), max_size=15),
)
def test_the_text_is_cut_before_the_first_string(strings: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    places = [whole.find(string) for string in strings if string in whole]
    text, found = through(strings, pieces)
    if not places:
        assert (text, found) == (whole, None)
    else:
        assert found in strings
        assert whole.startswith(text + found)
        # The piece that completes one may hold another that begins before it.
        assert len(text) <= min(
            whole.find(string) + len(string) for string in strings if string in whole
        )
        assert not any(string in text for string in strings)
