"""Sentences: where they end, who says them, and on what date."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.corpus.sentences import (
    find_date,
    head_of,
    looks_like_chat,
    sentences_of,
    split_sentences,
)


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ms. Voss met Dr. J. K. Rowe. She left.", ["Ms. Voss met Dr. J. K. Rowe.", "She left."]),
        ("Open at 6 p.m. on Monday. Shut.", ["Open at 6 p.m. on Monday.", "Shut."]),
        ("She left at 7 a.m. Rain fell.", ["She left at 7 a.m.", "Rain fell."]),
        ("At 5 p.m. Tuesday it ended.", ["At 5 p.m. Tuesday it ended."]),
        ("It cost 3.5 crowns, i.e. a lot.", ["It cost 3.5 crowns, i.e. a lot."]),
        ("Teas, e.g. Assam, vs. coffee.", ["Teas, e.g. Assam, vs. coffee."]),
        ("The U.S. Navy came. It left.", ["The U.S. Navy came.", "It left."]),
        ("He is in the U.S. The rest left.", ["He is in the U.S.", "The rest left."]),
        ("St. Anne is on Market St. The end.", ["St. Anne is on Market St.", "The end."]),
        ("No. 5 is shut. No. I will not.", ["No. 5 is shut.", "No.", "I will not."]),
        ('"Go now." She went.', ['"Go now."', "She went."]),
        ("“Stop!” Mirela said. “Why?” he asked.", ["“Stop!” Mirela said.", "“Why?” he asked."]),
        ("She ran... and hid. Well… Then rain.", ["She ran... and hid.", "Well…", "Then rain."]),
        ("(See p. 4.) Plan B. The team left.", ["(See p. 4.)", "Plan B.", "The team left."]),
        ("hi there. how are you? fine", ["hi there.", "how are you?", "fine"]),
        ("彼は来た。彼女は去った。", ["彼は来た。", "彼女は去った。"]),
    ],
)
def test_stops(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_blocks() -> None:
    text = (
        "# The Bakery\nMirela Voss opened\nthe bakery. It\nthrives.\n\n- flour\n  and salt\n"
        "- yeast\n\n1. Mix.\n2. Bake.\n\n---\n\n> Said\n> twice.\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    assert split(text) == [
        "The Bakery",
        "Mirela Voss opened\nthe bakery.",
        "It\nthrives.",
        "flour\n  and salt",
        "yeast",
        "Mix.",
        "Bake.",
        "Said\n> twice.",
        "| a | b |",
        "| 1 | 2 |",
    ]


def test_the_marks_of_a_wrapped_quotation_are_no_words() -> None:
    assert [s.text for s in sentences_of("> Said\n> twice.", "markdown")] == ["Said twice."]


def test_lines_that_are_no_wrapped_paragraph_stand_for_themselves() -> None:
    assert split("Buy milk\nCall Anna\nMend the roof") == ["Buy milk", "Call Anna", "Mend the roof"]
    assert split("Flour: 2 kg\nSalt: 1 g") == ["Flour: 2 kg", "Salt: 1 g"]


CHAT = """Title: The Keel
Time: 2034-01-17 18:00
Participants: Ann Orr, Bob

Ann Orr: Good evening. I am Ann!
Bob: True
and wet.

Time: 2034-01-18 09:00
Bob: Note: see https://example.com/a. Bye.
"""


def test_chat() -> None:
    assert looks_like_chat(CHAT)
    assert head_of(CHAT, "chat") == head_of(CHAT, "chat").__class__("The Keel", "2034-01-17")
    assert [(s.speaker, s.date, s.text) for s in sentences_of(CHAT, "chat")] == [
        ("Ann Orr", "2034-01-17", "Good evening."),
        ("Ann Orr", "2034-01-17", "I am Ann!"),
        ("Bob", "2034-01-17", "True and wet."),
        ("Bob", "2034-01-18", "Note: see https://example.com/a."),
        ("Bob", "2034-01-18", "Bye."),
    ]
    assert split(CHAT)[0] == "Good evening."


LONG_MESSAGES = """Time: 2033-01-04 18:22:05

Anna: Can you plan two days in Vell? 😅 Not too packed.
Assistant: Of course!

**Day 1:** Walk to the market.
**Day 2:** Take the ferry.
Total cost: about 90 crowns
Packing:
- a rain jacket
- boots
Note: the boat is full on Sundays. 🙈
Anna: For the party we need:
Wine: 3 bottles
Crisps
Assistant: Noted
"""


def test_lines_of_a_long_message_are_no_turns() -> None:
    assert looks_like_chat(LONG_MESSAGES)
    assert [(s.speaker, s.text) for s in sentences_of(LONG_MESSAGES, "chat")] == [
        ("Anna", "Can you plan two days in Vell? 😅"),
        ("Anna", "Not too packed."),
        ("Assistant", "Of course!"),
        ("Assistant", "**Day 1:** Walk to the market."),
        ("Assistant", "**Day 2:** Take the ferry."),
        ("Assistant", "Total cost: about 90 crowns"),
        ("Assistant", "Packing:"),
        ("Assistant", "a rain jacket"),
        ("Assistant", "boots"),
        ("Assistant", "Note: the boat is full on Sundays. 🙈"),
        ("Anna", "For the party we need:"),
        ("Anna", "Wine: 3 bottles"),
        ("Anna", "Crisps"),
        ("Assistant", "Noted"),
    ]


def test_long_answers_do_not_hide_a_chat() -> None:
    answer = "\n".join(f"{n}. Do this first\nand that next" for n in range(12))
    assert looks_like_chat(f"Time: 2033-01-04 18:22\nAnna: Help?\nBob: Yes.\n{answer}\nAnna: Ta.")
    prose = "It rained all day.\n" * 20
    assert not looks_like_chat(f"Date: 2033-01-04\nMood: low\n{prose}Note: x\nNote: y")


def test_speakers_who_speak_once_are_speakers() -> None:
    text = "Time: 2033-01-04\nAnna: One\nand a half.\nJan de Wit: Two.\nBo: Three.\n"
    assert [s.speaker for s in sentences_of(text, "chat")] == ["Anna", "Jan de Wit", "Bo"]


@pytest.mark.parametrize(
    "lines",
    [
        "[17/01/2034, 18:00:05] Ann Orr: hi\n[17/01/2034, 18:01:05] Bob: yo",
        "17/01/2034, 18:00 - Ann Orr: hi\n17/01/2034, 18:01 - Bob: yo",
    ],
)
def test_exported_chat(lines: str) -> None:
    found = [(s.speaker, s.date, s.text) for s in sentences_of(lines, "chat")]
    assert found == [("Ann Orr", "2034-01-17", "hi"), ("Bob", "2034-01-17", "yo")]


def test_what_is_no_chat() -> None:
    assert not looks_like_chat("Flour: 2 kg\nSalt: 1 g\nWater: 3 l")
    assert not looks_like_chat("Note: it rained.\nWe stayed in and read.\nThen we slept.")


@pytest.mark.parametrize(
    ("head", "when"),
    [
        ("# 3 January 2033", "2033-01-03"),
        ("# Monday, 3rd January 2033", "2033-01-03"),
        ("By Tilda Greave, 4 March 2031", "2031-03-04"),
        ("*By Tilda Greave, 4 March 2031*", "2031-03-04"),
        ("Date: Jan 5, 2031\nAuthor: Bo", "2031-01-05"),
        ("---\ntitle: x\ndate: 2031-02-03\n---", "2031-02-03"),
        ("2031-02-03 18:00", "2031-02-03"),
        ("2031-02-03T18:00:00Z", "2031-02-03"),
    ],
)
def test_headers_give_the_date_and_are_no_sentences(head: str, when: str) -> None:
    text = f"{head}\n\nThe dam broke. It fell."
    found = [(s.text, s.date) for s in sentences_of(text, "markdown")]
    assert found == [("The dam broke.", when), ("It fell.", when)]
    assert head_of(text, "markdown").date == when


def test_later_dated_headings_date_what_follows() -> None:
    text = "# 3 January 2033\nRain.\n\n# 4 January 2033\nSun.\n\n# The flood of 9 May 1999\nMud."
    assert [(s.text, s.date) for s in sentences_of(text, "markdown")] == [
        ("Rain.", "2033-01-03"),
        ("Sun.", "2033-01-04"),
        ("The flood of 9 May 1999", "2033-01-04"),
        ("Mud.", "2033-01-04"),
    ]


def test_a_date_in_a_sentence_is_not_the_documents() -> None:
    text = "Dear Ann,\n\nI came on 4 March 2031\nand left."
    assert [s.date for s in sentences_of(text, "text")] == [None, None]


def test_dateline_and_heading_above_the_by_line() -> None:
    assert head_of("KELSTRAND, 4 March 2031 - The dam broke.", "text").date == "2031-03-04"
    text = "# The dam\n\nBy Bo, 4 March 2031\n\nIt broke."
    assert [(s.text, s.date) for s in sentences_of(text, "markdown")] == [
        ("The dam", "2031-03-04"),
        ("It broke.", "2031-03-04"),
    ]
    assert head_of(text, "markdown").title == "The dam"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on 17 January 2034.", "2034-01-17"),
        ("17.01.2034", "2034-01-17"),
        ("17/01/2034", "2034-01-17"),
        ("3/4/2031", None),  # two dates
        ("2031-13-40", None),
        ("March 2031", None),
    ],
)
def test_find_date(text: str, expected: str | None) -> None:
    assert find_date(text) == expected


PIECES = (
    'Mirela Voss went home. Dr. J. e.g. a.m. 3.5 ... … ! ? " ” ) ( - # * > 1. (a) Ann: Time: by | '
    "2031-02-03 --- == ü 漢 。 é By https://x.y/z U.S. No. said"
)
WORDS = st.sampled_from([*PIECES.split(), " ", "  ", "\n", "\n\n", "\t"])
TEXTS = st.one_of(
    st.lists(WORDS, max_size=60).map(" ".join),
    st.lists(WORDS, max_size=60).map("".join),
    st.text(max_size=80),
)
MARKS = re.compile(r"[\s>]*(?:#{1,6}|[-*+•‣◦–—]|\(?\d{1,3}[.)]|\(?[a-z]\)|[-=*_~|:\s]+)?[\s>]*")


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_spans_are_ordered_and_lose_nothing_but_marks(text: str) -> None:
    spans = split_sentences(text)
    last = 0
    for start, end in spans:
        assert last <= start < end <= len(text)
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        last = end
    if not looks_like_chat(text):
        between = [0, *(edge for span in spans for edge in span), len(text)]
        for start, end in zip(between[::2], between[1::2], strict=True):
            for line in text[start:end].split("\n"):
                assert MARKS.fullmatch(line), (line, text)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.sampled_from(["text", "markdown", "chat", "record"]))
def test_sentences_hold_their_spans(text: str, document_format: str) -> None:
    last = 0
    for sentence in sentences_of(text, document_format):
        assert last <= sentence.start < sentence.end
        words = text[sentence.start : sentence.end].replace(">", "").split()
        assert sentence.text.replace(">", "").split() == words
        assert (sentence.speaker is None) or document_format == "chat"
        last = sentence.end
