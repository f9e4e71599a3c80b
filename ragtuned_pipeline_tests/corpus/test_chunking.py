"""Text units: they cover the document, keep to their size, and end where sentences end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers

from ragtuned_pipeline.corpus.chunking import chunk_documents
from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.tables import check_schema, table

PARAGRAPH = (
    "Mirela Voss opened the Harrow Bakery in {0}. Dr. Orr bought {0} loaves, and said so. "
    "Nobody in Kelstrand had seen such a queue! It rained; the queue stayed. Who would leave? "
    "The oven of the year {0} is kept by Ms. Pruett in a shed behind the salt works."
)
STORY = "\n\n".join(PARAGRAPH.format(year) for year in range(1900, 1930))


def byte_level(text: str, size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


TOKENIZER = byte_level(STORY, 400)


def documents(*texts: str, document_format: str = "text") -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "id": f"doc-{number}-{text[:9]}",
            "human_readable_id": number,
            "title": f"{number}",
            "text": text,
            "text_unit_ids": [],
            "creation_date": None,
            "raw_data": None,
            "path": f"{number}.txt",
            "format": document_format,
        }
        for number, text in enumerate(texts)
    ]
    return table("documents", rows)


def units_of(text: str, chunk: int, overlap: int, document_format: str = "text") -> list[Any]:
    made = documents(text, document_format=document_format)
    units: list[Any] = chunk_documents(made, TOKENIZER, chunk, overlap)[1].to_pylist()
    return units


def n_tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def test_tables() -> None:
    texts = (STORY, "One sentence.", STORY + " More.")
    made, units = chunk_documents(documents(*texts), TOKENIZER, 120, 30)
    check_schema("documents", made)
    check_schema("base_text_units", units)
    assert units["human_readable_id"].to_pylist() == list(range(units.num_rows))
    assert [i for ids in made["text_unit_ids"].to_pylist() for i in ids] == units["id"].to_pylist()
    assert len(set(units["id"].to_pylist())) == units.num_rows
    by_id = dict(zip(made["id"].to_pylist(), texts, strict=True))
    for unit in units.to_pylist():
        assert unit["text"] == by_id[unit["document_id"]][unit["start"] : unit["end"]]
    assert chunk_documents(documents(*texts), TOKENIZER, 120, 30)[1].equals(units)


def test_golden() -> None:
    # One token a word or a mark.
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text = (
        "# 3 May 2031\n\nAnn came early. She sat down. Bob, who is old, left the house by the sea "
        "without a word to us. It rained on him. He came back.\n\nAll was well again."
    )
    _, units = chunk_documents(documents(text), words, 16, 6)
    assert list(zip(units["text"].to_pylist(), units["n_tokens"].to_pylist(), strict=True)) == [
        ("# 3 May 2031\n\nAnn came early. She sat down.", 12),
        ("She sat down. Bob, who is old, left the house by the sea", 16),
        ("left the house by the sea without a word to us.", 12),
        ("without a word to us. It rained on him. He came back.", 15),
        ("He came back.\n\nAll was well again.", 9),
    ]


def test_units_begin_and_end_with_sentences() -> None:
    units = units_of(STORY, 120, 50)
    spans = split_sentences(STORY)
    assert {u["end"] for u in units} <= {end for _, end in spans}
    assert {u["start"] for u in units} <= {start for start, _ in spans}
    assert all(later["start"] < former["end"] for former, later in pairwise(units))
    # Cut in the last third.
    assert min(u["n_tokens"] for u in units[:-1]) > 120 * 2 // 3


def test_a_turn_keeps_its_speaker() -> None:
    chat = "\n".join(f"{name}: {PARAGRAPH.format(7)[:93]}" for name in ("Ann", "Bob Orr") * 12)
    units = units_of(chat, 120, 50, "chat")
    assert len(units) > 3
    assert all(u["text"].startswith(("Ann: ", "Bob Orr: ")) for u in units)


def test_a_text_without_sentences_is_cut_between_words() -> None:
    words = " ".join(f"word{number}" for number in range(400))
    units = units_of(words, 60, 20)
    assert len(units) > 10
    assert {word for u in units for word in u["text"].split()} == set(words.split())


def test_characters_of_many_tokens_are_not_cut() -> None:
    text = "👩‍🚀漢字" * 60
    units = units_of(text, 10, 3)
    assert all(u["n_tokens"] <= 10 for u in units)
    assert {c for u in units for c in u["text"]} == set(text)


class Counting:
    """The real tokenizer, and how often each text was given to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> Encoding:
        self.texts.append(text)
        return self.tokenizer.encode(text, **options)

    def encode_batch(self, texts: Sequence[str], **options: Any) -> list[Encoding]:
        self.texts.extend(texts)
        return self.tokenizer.encode_batch(texts, **options)


def test_each_document_is_encoded_once() -> None:
    texts = [STORY + f" {number}." for number in range(70)]
    counting = Counting(TOKENIZER)
    chunk_documents(documents(*texts), cast(Tokenizer, counting), 120, 30)
    assert counting.texts == texts


def test_a_tokenizers_own_truncation_cuts_nothing() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    _, units = chunk_documents(documents(STORY), tokenizer, 120, 30)
    assert units.equals(chunk_documents(documents(STORY), TOKENIZER, 120, 30)[1])


def test_an_edit_leaves_most_ids_alone() -> None:
    edited = STORY.replace("rained; the queue", "snowed for an hour; the long queue", 1)
    before = {u["id"] for u in units_of(STORY, 120, 30)}
    after = {u["id"] for u in units_of(edited, 120, 30)}
    assert len(before & after) > 0.7 * len(before)


def test_repeated_text_gets_ids_of_its_own() -> None:
    units = units_of("It rained all day on the grey town. " * 80, 60, 0)
    assert len({u["text"] for u in units}) < len(units)
    assert len({u["id"] for u in units}) == len(units)


def test_an_overlap_as_long_as_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap_tokens is 100.*chunk_tokens, which is 100"):
        units_of(STORY, 100, 100)


PIECES = (
    "Mirela Voss opened it. Dr. Orr left! Why? 漢 👩‍🚀 ... e.g. 3.5 \n \n\n queue https://x.y/z"
)
TEXTS = st.one_of(
    st.lists(st.sampled_from([*PIECES.split(" "), " ", "\n"]), max_size=120).map(" ".join),
    st.lists(st.sampled_from(PIECES.split(" ")), max_size=60).map("".join),
    st.text(max_size=120),
).filter(lambda text: bool(text.strip()))


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(8, 60), st.integers(0, 59))
def test_properties(text: str, chunk: int, overlap: int) -> None:
    overlap = min(overlap, chunk - 1)
    encoding = TOKENIZER.encode(text, add_special_tokens=False)
    units = units_of(text, chunk, overlap)
    # Everything is covered, in order, and every unit brings new text.
    assert not text[: units[0]["start"]].strip()
    assert not text[units[-1]["end"] :].strip()
    for former, later in pairwise(units):
        assert former["start"] < later["start"]
        assert former["end"] < later["end"]
        assert not text[former["end"] : later["start"]].strip()
        shared = [b for b, e in encoding.offsets if later["start"] < e and b < former["end"]]
        assert len(shared) <= overlap
    for unit in units:
        assert unit["text"] == text[unit["start"] : unit["end"]] == unit["text"].strip() != ""
        inside = [b for b, e in encoding.offsets if unit["start"] < e and b < unit["end"]]
        assert unit["n_tokens"] == len(inside) <= chunk
    assert units == units_of(text, chunk, overlap)
