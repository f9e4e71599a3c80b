"""What is shown of an answer, piece by piece, is the answer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ragtuned_pipeline.serving.answer_text import AnswerText


def _bytes(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes: most characters beyond ASCII are several of them."""
    return bytes(tokens).decode("utf-8", "replace")


def _pieces(text: str, *stops: str) -> tuple[list[str], AnswerText]:
    shown = AnswerText(_bytes, stops)
    pieces = []
    for token in text.encode():
        pieces.append(shown.add(token))
        if shown.stopped:
            break
    return [*pieces, shown.end()], shown


@pytest.mark.parametrize(
    "text", ["plain", " \n around  it\n ", "naïve café", "日本語 and 🦊🦊", "", " "]
)
def test_the_pieces_are_the_whole_and_no_character_is_torn(text: str) -> None:
    pieces, shown = _pieces(text)
    assert "".join(pieces) == text.strip()
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert not shown.stopped


def test_pieces_come_as_soon_as_they_are_sure() -> None:
    pieces, _ = _pieces("ab é")
    #       a    b    " "  half  é    end
    assert pieces == ["a", "b", "", "", " é", ""]


def test_an_answer_that_ends_within_a_character_says_so() -> None:
    shown = AnswerText(_bytes)
    assert [shown.add(token) for token in "é".encode()[:1]] == [""]
    assert shown.end() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one. two. three", (". t",), "one"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("a STOX b STOP c", ("STOP",), "a STOX b"),
        ("aab aabaa", ("aabaa",), "aab"),
        ("second first", ("first", "second"), ""),
        ("ends with ST", ("STOP",), "ends with ST"),
        ("🦊 one 🦊🦊 two", ("🦊🦊",), "🦊 one"),
    ],
)
def test_nothing_of_a_stop_string_is_ever_shown(
    text: str, stops: tuple[str, ...], wanted: str
) -> None:
    pieces, shown = _pieces(text, *stops)
    assert "".join(pieces) == wanted
    assert shown.stopped == (wanted != text)


def test_what_is_shown_grows() -> None:
    """Each piece is shown once: no text is taken back where a stop string seemed to begin."""
    shown = AnswerText(_bytes, ("\n\nQ",))
    texts = [""]
    for token in b"one\n\ntwo \n\nthree":
        texts.append(texts[-1] + shown.add(token))
    texts.append(texts[-1] + shown.end())
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == "one\n\ntwo \n\nthree"
