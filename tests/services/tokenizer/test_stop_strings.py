"""Stop strings: the text shown is the text up to the first match, however it was cut into pieces."""

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.tokenizer.stop_strings import StopStrings


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    return [*pieces, text[start:]]


def run(stops: list[str], pieces: list[str], is_stop_shown: bool = False) -> tuple[str, str | None]:
    checker, shown = StopStrings(stops, is_stop_shown), ""
    for piece in pieces:
        text, stop = checker.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + checker.flush(), None


def naive(stops: list[str], text: str, is_stop_shown: bool) -> tuple[str, str | None]:
    """The first place where any stop string is complete; the longest one there."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return (text[:end] if is_stop_shown else text[: end - len(stop)]), stop
    return text, None


@settings(max_examples=1000, deadline=None)
@given(
    stops=st.lists(st.text("ab\n]^-\\", min_size=1, max_size=5), min_size=1, max_size=4),
    text=st.text("ab\n]^-\\", max_size=40),
    sizes=st.lists(st.integers(0, 6), max_size=20),
    is_stop_shown=st.booleans(),
)
@example(stops=["abc", "b"], text="abc", sizes=[], is_stop_shown=False)
def test_equals_a_naive_search_for_any_pieces(
    stops: list[str], text: str, sizes: list[int], is_stop_shown: bool
) -> None:
    assert run(stops, cut(text, sizes), is_stop_shown) == naive(stops, text, is_stop_shown)


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    text=st.text("abc", max_size=40),
    sizes=st.lists(st.integers(0, 6), max_size=20),
)
def test_what_is_held_back_is_the_start_of_a_stop_string(stops: list[str], text: str, sizes: list[int]) -> None:
    checker, shown, given_so_far = StopStrings(stops, False), "", ""
    for piece in cut(text, sizes):
        out, stop = checker.push(piece)
        shown, given_so_far = shown + out, given_so_far + piece
        if stop is not None:
            return
        held = given_so_far[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert given_so_far.startswith(shown)


def test_a_match_that_is_complete_while_not_active_does_not_count() -> None:
    checker = StopStrings(["b", "abc"], False)
    assert checker.push("xab", is_active=False) == ("x", None)  # "ab" may become "abc"
    assert checker.push("d") == ("abd", None)
    assert checker.push("ab") == ("a", "b")


def test_a_match_that_begins_while_not_active_counts() -> None:
    checker = StopStrings(["abc"], False)
    assert checker.push("xab", is_active=False) == ("x", None)
    assert checker.push("c") == ("", "abc")


def test_long_stop_strings_stay_fast() -> None:
    checker = StopStrings(["a" * 999 + "b"], False)
    shown = "".join(checker.push("a")[0] for _ in range(5_000))
    assert re.fullmatch("a*", shown)
    assert len(shown) == 5_000 - 999
    assert checker.push("b") == ("", "a" * 999 + "b")
