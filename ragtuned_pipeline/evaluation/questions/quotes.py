"""What a text says word for word: the evidence of a question. Only white space may differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.synthesis.stated import telling_words


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


def stating_sentence(question: str, gold: str, texts: Iterable[str]) -> str | None:
    """Return the sentence that holds `gold` and most of the question's telling words, the first of
    several, or None where no sentence holds it."""
    asked = telling_words(question)
    best: tuple[int, str] | None = None
    for text in texts:
        for start, end in split_sentences(text):
            sentence = flat(text[start:end])
            shared = len(asked & telling_words(sentence))
            if stands_in(gold, sentence) and (best is None or shared > best[0]):
                best = shared, sentence
    return best[1] if best else None


def statement(question: str, gold: str, answer: str, texts: Sequence[str]) -> list[str]:
    """Return what the texts state of a fact: the sentences of its answer that stand there, or the
    stating sentence where the answer is no more than its gold."""
    if len(telling_words(answer)) > len(telling_words(gold)):
        return quotable(answer, map(flat, texts))
    sentence = stating_sentence(question, gold, texts)
    return [sentence] if sentence else []
