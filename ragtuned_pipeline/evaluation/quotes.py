"""What a text says word for word: the evidence of a question. Only white space may differ."""

from __future__ import annotations

from collections.abc import Iterable

from ragtuned_pipeline.corpus.sentences import split_sentences


def flat(text: str) -> str:
    """Return `text` on one line, with single spaces: as quotations are compared."""
    return " ".join(text.split())


def stands_in(quotation: str, flat_text: str) -> bool:
    """Whether the text, as `flat` returns it, holds the quotation; an empty one stands nowhere."""
    words = flat(quotation)
    return bool(words) and words in flat_text


def quotable(answer: str, flat_texts: Iterable[str]) -> list[str]:
    """Return the sentences of `answer` that stand in one of the texts, in order.

    An answer of a chat may tell who speaks ("Maud said: I sold the nets."): then the words are what
    is looked for.
    """
    texts = list(flat_texts)
    found: dict[str, None] = {}
    for start, end in split_sentences(answer):
        sentence = flat(answer[start:end])
        for words in (sentence, sentence.partition(" said: ")[2]):
            if any(stands_in(words, text) for text in texts):
                found[words] = None
                break
    return list(found)
