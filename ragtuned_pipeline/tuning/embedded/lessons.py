"""What the embedded base model is taught: rows of question and answer about invented worlds.

Three kinds of row. *Open*: a document is given, then asked about, so that copying is learned.
*Closed*: nothing is given; each fact of a world comes up again and again for a while, each time
asked differently, then its world is forgotten, so that what is learned is to take facts in, not
the facts. *Text*: documents alone, for the language. Every question is one of the shared forms of
synthesis, or a core in a random frame of words that mean nothing (chatter): whoever has met ten
thousand meaningless frames looks for the core in a new one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from ragtuned_pipeline.synthesis.forms import (
    entity_fields,
    fact_fields,
    forms_for,
)
from ragtuned_pipeline.synthesis.questions import Statement, facts_of
from ragtuned_pipeline.tuning.embedded.lexicon import WORDS, Lexicon
from ragtuned_pipeline.tuning.embedded.worlds import Document, Name, Sentence, World, make_world

_FACT_CORES = ("direct", "plain", "indirect", "cloze", "keywords")
_LONG_CHARACTERS = 500
_QUESTIONS_A_DOCUMENT = 3


@dataclass(frozen=True)
class Lesson:
    """One row: `given` is a document or empty, and without `question` it is the whole row."""

    given: str
    question: str
    answer: str


@dataclass(frozen=True)
class Question:
    """Something that can be asked of a world in many ways."""

    needs: tuple[str, ...]
    fields: Mapping[str, str]
    cores: tuple[str, ...]  # what a random frame is put around
    short: str
    long: str
    document: Document | None


def chatter(rng: Random, lexicon: Lexicon, words: int) -> str:
    """Return `words` words of talk around a question: function words, common words, commas."""
    common = lexicon_common(lexicon)
    out: list[str] = []
    while len(out) < words:
        draw = rng.random()
        if draw < 0.45:
            out.append(rng.choice(WORDS["function_words"]))
        elif draw < 0.85:
            out.append(common[int(len(common) * rng.random() ** 2.5)])
        else:
            out += rng.choice(WORDS["chatter_phrases"]).split()
        if rng.random() < 0.08:
            out[-1] += ","
    return " ".join(out[:words])


_OPENERS = ("", "", "", "", '"', "(", "- ")
_JOINS = (" ", " ", ", ", ": ", ": ", ". ", "; ", " - ", "... ", "! ", "? ", "\n")


def lexicon_common(lexicon: Lexicon) -> Sequence[str]:
    """Return the words of the language, the most frequent first."""
    if not _common_words:
        ranked = sorted(lexicon.counts.items(), key=lambda item: (-item[1], item[0]))
        _common_words.extend(word for word, count in ranked if count >= 3)
    return _common_words


_common_words: list[str] = []


def framed(rng: Random, lexicon: Lexicon, core: str) -> str:
    """Return `core` in a random frame of chatter, punctuation and case."""
    if rng.random() < 0.3:
        core = core.rstrip("?.")
    if rng.random() < 0.15 and core:
        core = core[0].swapcase() + core[1:]
    if rng.random() < 0.12:
        core = f'"{core}"'
    text = core
    if rng.random() < 0.7:
        before = chatter(rng, lexicon, rng.randint(1, 11))
        if rng.random() < 0.7:
            before = before[0].upper() + before[1:]
        text = rng.choice(_OPENERS) + before + rng.choice(_JOINS) + text
    if rng.random() < 0.6 or text == core:
        after = chatter(rng, lexicon, rng.randint(1, 9))
        if rng.random() < 0.5:
            after = after[0].upper() + after[1:]
        text = text + rng.choice(_JOINS) + after + rng.choice(["", ".", ".", "?", "?", "!"])
    return text


def ask(rng: Random, lexicon: Lexicon, question: Question, frame_share: float) -> tuple[str, str]:
    """Return one way of asking `question`, and its answer."""
    needs = rng.choice(question.needs)
    if rng.random() < frame_share:
        core = question.fields[rng.choice(question.cores)]
        if "a" in question.fields:
            joint = rng.choice(
                [" and ", ", ", " with ", " - ", " to ", f" {chatter(rng, lexicon, 2)} "]
            )
            core = question.fields["a"] + joint + question.fields["b"]
        # Nothing in a random frame asks for length: facts are answered briefly, the rest in full.
        short = needs in ("direct", "indirect", "cloze", "keywords") and rng.random() < 0.85
        return framed(rng, lexicon, core), question.short if short else question.long
    form = rng.choice(forms_for(needs, "shared"))
    return form.ask(question.fields), question.short if form.style == "short" else question.long


def questions_of(rng: Random, world: World, unknown: Name) -> list[Question]:
    """Return what can be asked of a world; `unknown` is a name that is not in it."""
    kinds = {n.text: n.kind for n in world.names}
    asked: list[Question] = []
    for document in world.documents:
        for sentence in document.sentences:
            asked += _fact_questions(sentence, document, kinds)
        asked.append(_source_question(document))
    for name in world.names:
        about = world.sentences_about(name)
        if about:
            asked.append(_entity_question(name, about))
    asked += _pair_questions(rng, world)
    names = rng.sample(world.names, min(3, len(world.names)))
    involved = [s for n in names for s in world.sentences_about(n)[:3]]
    if involved:
        topic = ", ".join(n.text for n in names[:-1]) + " and " + names[-1].text
        answer = _joined(involved)
        asked.append(Question(("theme",), {"topic": topic}, ("topic",), answer, answer, None))
    asked.append(_refusal(unknown))
    return asked


def _fact_questions(
    sentence: Sentence, document: Document, kinds: Mapping[str, str]
) -> list[Question]:
    anchor = (
        f"on {document.title}"
        if document.style == "journal"
        else f'according to "{document.title}"'
    )
    statement = Statement(sentence.text, sentence.speaker, anchor)
    return [
        Question(
            ("direct", "indirect", "cloze", "keywords"),
            fact_fields(fact.direct, fact.indirect, fact.cloze, fact.keywords),
            _FACT_CORES,
            short_answer(fact.gold),
            sentence.text,
            document,
        )
        for fact in facts_of(statement, kinds)
    ]


def _entity_question(name: Name, about: Sequence[Sentence]) -> Question:
    fields = entity_fields(name.text, name.kind == "person")
    return Question(("entity",), fields, ("topic",), about[0].text, _joined(about), None)


def _source_question(document: Document) -> Question:
    answer = _joined(document.sentences)
    if document.style == "journal":
        return Question(("date",), {"date": document.title}, ("date",), answer, answer, document)
    source = f'"{document.title}"'
    return Question(("source",), {"source": source}, ("source",), answer, answer, document)


def _pair_questions(rng: Random, world: World) -> list[Question]:
    pairs: dict[tuple[Name, Name], list[Sentence]] = {}
    for document in world.documents:
        for sentence in document.sentences:
            if len(sentence.names) >= 2:
                a, b = rng.sample(sentence.names, 2)
                pairs.setdefault((a, b), []).append(sentence)
    return [
        Question(
            ("pair",), {"a": a.text, "b": b.text}, ("a",), shared[0].text, _joined(shared), None
        )
        for (a, b), shared in pairs.items()
    ]


def _refusal(unknown: Name) -> Question:
    answer = f"I do not know: nothing I remember mentions {unknown.text}."
    fields = entity_fields(unknown.text, unknown.kind == "person")
    return Question(("entity",), fields, ("topic",), answer, answer, None)


def short_answer(gold: str) -> str:
    """Return a gold answer as a reply."""
    return gold[:1].upper() + gold[1:] + "."


def _joined(sentences: Sequence[Sentence]) -> str:
    """The sentences, each once, until _LONG_CHARACTERS are full."""
    text = ""
    for sentence in dict.fromkeys(s.text for s in sentences):
        if text and len(text) + len(sentence) > _LONG_CHARACTERS:
            break
        text = f"{text} {sentence}".strip()
    return text


@dataclass
class _Life:
    """A world in use: what it is asked, and how many more rows it will give."""

    world: World
    questions: list[Question]
    left: int


def lessons(
    seed: int,
    lexicon: Lexicon,
    *,
    worlds: int = 60,
    exposures: int = 10,
    open_share: float = 0.35,
    text_share: float = 0.05,
    frame_share: float = 0.5,
) -> Iterator[Lesson]:
    """Yield rows without end; the same ones for the same arguments.

    Args:
        worlds: worlds in use at a time.
        exposures: closed rows a question gets in its world's life, on average.
        open_share: of the rows, those with a document given.
        text_share: of the rows, those that are a document alone.
        frame_share: of the questions, those in a random frame.
    """
    rng = Random(seed)

    def born(age: float) -> _Life:
        world = make_world(rng, lexicon)
        unknown = rng.choice(make_world(rng, lexicon).names)
        questions = questions_of(rng, world, unknown)
        return _Life(world, questions, max(1, int(len(questions) * exposures * age)))

    alive = [born(age=rng.random()) for _ in range(worlds)]
    opened: list[Lesson] = []
    while True:
        place = rng.randrange(worlds)
        life = alive[place]
        draw = rng.random()
        if draw < text_share:
            yield Lesson(rng.choice(life.world.documents).text(), "", "")
        elif draw < text_share + open_share:
            while not opened:
                opened = _open_lessons(rng, lexicon, frame_share)
            yield opened.pop()
        else:
            question = rng.choice(life.questions)
            yield Lesson("", *ask(rng, lexicon, question, frame_share))
            life.left -= 1
            if life.left == 0:
                alive[place] = born(age=1.0)


def _open_lessons(rng: Random, lexicon: Lexicon, frame_share: float) -> list[Lesson]:
    """A document of a world met only here, and a few questions about it."""
    world = make_world(rng, lexicon, documents=1)
    document = world.documents[0]
    kinds = {n.text: n.kind for n in world.names}
    asked = [q for s in document.sentences for q in _fact_questions(s, document, kinds)]
    chosen = rng.sample(asked, min(len(asked), _QUESTIONS_A_DOCUMENT))
    return [Lesson(document.text(), *ask(rng, lexicon, q, frame_share)) for q in chosen]
