"""Documents to text units: overlapping windows of tokens that end where sentences end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tokenizers

from ragtuned_pipeline.corpus.sentences import sentences_of
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.tables import SCHEMAS

_Positions = npt.NDArray[np.int64]

_BATCH = 64  # documents that are encoded at a time: bounds the memory that their tokens take
_SPACE = re.compile(r"\s+")


def chunk_documents(
    documents: pa.Table, tokenizer: tokenizers.Tokenizer, chunk_tokens: int, overlap_tokens: int
) -> tuple[pa.Table, pa.Table]:
    """Cut every document into text units.

    Each document is encoded once. A unit has at most `chunk_tokens` of its document's tokens; it
    ends at the last sentence end of its last third, else between two words, else between two
    tokens. The next one begins at the first sentence that begins in its last `overlap_tokens`,
    else at a word there, and always brings new text. A unit's id depends on its document's path
    and its own text, not on where it stands: an edit elsewhere in the document leaves it alone.

    Args:
        documents: table `documents`; its text_unit_ids are replaced.
        tokenizer: the base model's; its truncation and padding are switched off.
        chunk_tokens, overlap_tokens: in tokens of that tokenizer, special tokens not counted.

    Returns:
        `documents` with text_unit_ids, and the table `base_text_units`; `start` and `end` are
        characters: text == document_text[start:end].

    Raises:
        ValueError: the overlap is not shorter than the chunk.
    """
    if not 0 <= overlap_tokens < chunk_tokens:
        raise ValueError(
            f"corpus.overlap_tokens is {overlap_tokens}: make it at least 0 and less than "
            f"corpus.chunk_tokens, which is {chunk_tokens}"
        )
    units: dict[str, list[Any]] = {name: [] for name in SCHEMAS["base_text_units"].names}
    unit_ids: list[list[str]] = []
    for document_id, path, text, document_format, begins, ends in _encoded(documents, tokenizer):
        stops = np.array([s.end for s in sentences_of(text, document_format)], dtype=np.int64)
        windows = _Windows(text, begins, ends, stops, chunk_tokens, overlap_tokens)
        seen: Counter[str] = Counter()
        of_document: list[str] = []
        for start, end, n_tokens in windows:
            words = text[start:end]
            of_document.append(content_id("tu", path, words, str(seen[words])))
            seen[words] += 1
            units["id"].append(of_document[-1])
            units["text"].append(words)
            units["n_tokens"].append(n_tokens)
            units["document_id"].append(document_id)
            units["start"].append(start)
            units["end"].append(end)
        unit_ids.append(of_document)
    count = len(units["id"])
    units["human_readable_id"] = list(range(count))
    for name in ("entity_ids", "relationship_ids", "covariate_ids"):
        units[name] = [[]] * count
    column = documents.schema.get_field_index("text_unit_ids")
    field = documents.schema.field(column)
    return (
        documents.set_column(column, field, pa.array(unit_ids, field.type)),
        pa.Table.from_pydict(units, schema=SCHEMAS["base_text_units"]),
    )


def _encoded(
    documents: pa.Table, tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[str, str, str, str, _Positions, _Positions]]:
    """Yield id, path, text, format and the first and past-the-last characters of the tokens."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for at in range(0, documents.num_rows, _BATCH):
        rows = documents.slice(at, _BATCH).select(["id", "path", "text", "format"]).to_pydict()
        encodings = tokenizer.encode_batch(rows["text"], add_special_tokens=False)
        for *document, encoding in zip(*rows.values(), encodings, strict=True):
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            # A normaliser may move a token's offsets back by a character; order is relied on below.
            begins, ends = np.maximum.accumulate(spans, axis=0).T
            yield (*document, begins, ends)


class _Windows:
    """Iterates over the windows (start, end, n_tokens) of one document."""

    def __init__(
        self,
        text: str,
        begins: _Positions,
        ends: _Positions,
        stops: _Positions,
        chunk_tokens: int,
        overlap_tokens: int,
    ) -> None:
        self.text = text
        self.begins = begins
        self.ends = ends
        self.stops = stops
        # What stands between two sentences (a speaker's name, a heading's mark, a header) belongs
        # to the later one.
        self.starts = np.array([self._skip_space(int(stop)) for stop in stops], dtype=np.int64)
        self.chunk = chunk_tokens
        self.overlap = overlap_tokens
        self.last = len(text.rstrip())

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        start, end = self._skip_space(0), 0
        while start < self.last:
            previous, end = end, self._end(start, end)
            if end <= previous:  # the overlap alone fills the window
                start = self._skip_space(previous)
                end = self._end(start, previous)
            first, past = self._tokens(start, end)
            yield start, end, past - first
            start = self._next_start(first, past, end) if end < self.last else end

    def _tokens(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of the tokens that have a character in text[start:end]."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        return first, max(first, int(np.searchsorted(self.begins, end, side="left")))

    def _end(self, start: int, previous: int) -> int:
        """Return where the window from `start` ends: after `previous` if it can."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        if first + self.chunk >= len(self.begins):
            return self.last
        limit = int(self.begins[first + self.chunk])
        floor = max(previous, int(self.begins[first + self.chunk * 2 // 3]))
        stop = int(np.searchsorted(self.stops, limit, side="right")) - 1
        if stop >= 0 and self.stops[stop] > floor:
            return int(self.stops[stop])
        if not self._at_edge(limit):
            for gap in _SPACE.finditer(self.text, floor + 1, limit):
                limit = gap.start()
        # One character may be more tokens than a window holds.
        limit = max(limit, start + 1)
        return start + len(self.text[start:limit].rstrip())

    def _next_start(self, first: int, past: int, end: int) -> int:
        """Return where the window after that of the tokens first to past, up to `end`, starts."""
        zone = max(past - self.overlap, first + 1)
        if zone >= past:
            return self._skip_space(end)
        # Not inside a character that is several tokens.
        earliest = max(int(self.begins[zone]), int(self.ends[zone - 1]))
        sentence = int(np.searchsorted(self.starts, earliest, side="left"))
        if sentence < len(self.starts) and self.starts[sentence] < end:
            return int(self.starts[sentence])
        if not self._at_edge(earliest) and (gap := _SPACE.search(self.text, earliest, end)):
            return gap.end()
        return self._skip_space(earliest)

    def _at_edge(self, position: int) -> bool:
        return self.text[position - 1].isspace() or self.text[position : position + 1].isspace()

    def _skip_space(self, position: int) -> int:
        gap = _SPACE.match(self.text, position)
        return gap.end() if gap else position
