"""A teacher for synthesis that answers by rule: from the prompt's text alone, always the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.synthesis.forms import FACT_NEEDS, FORMS, Style, fact_fields
from ragtuned_pipeline.synthesis.gates import is_undated, names_one_of
from ragtuned_pipeline.synthesis.questions import GAP, SentenceFact, Statement, facts_of
from ragtuned_pipeline.synthesis.stated import telling_words

_ASKS = {
    "EntityPair": (
        "What is there to know about {a}?",
        (
            "Briefly, what is there to know about {a}?",
            "Put {a} in one sentence.",
            "In short, what does {a} stand for?",
            "Give me the heart of the matter on {a}.",
            "one line on {a}, please",
            "If only one thing is to be said of {a}, which?",
            "Name the main thing about {a}.",
        ),
        (
            "Give me a full account of {a}.",
            "Explain in detail what is known of {a}.",
            "Walk me through the story of {a}.",
            "Everything on {a}, from the beginning.",
            "Which events and people belong to {a}?",
            "I need the whole picture of {a}.",
            "Write a page about {a}.",
            "How did things go with {a}, all told?",
        ),
    ),
    "RelationshipPair": (
        "What has {a} to do with {b}?",
        (
            "Briefly, how does {a} stand to {b}?",
            "In a sentence, what binds {a} to {b}?",
            "Name the tie between {a} and {b}.",
            "{a}, seen from {b}: who or what?",
            "Say shortly why {a} matters to {b}.",
            "which link leads from {a} to {b}",
            "What is the main thing between {a} and {b}?",
        ),
        (
            "Explain how {a} and {b} belong together.",
            "Tell me all about {a} with regard to {b}.",
            "What took place between {a} and {b}, and how?",
            "Give a full account of {a} and {b}.",
            "In what way did {a} deal with {b}?",
            "Set out the dealings of {a} with {b}.",
            "I want every detail on {a} and {b}.",
            "How did it come that {a} and {b} are named together?",
        ),
    ),
    "CommunityPair": (
        "What is the larger story of {a}?",
        (
            "Briefly, what goes on around {a}?",
            "In two sentences, what holds {a} together?",
            "Name the theme that {a} share.",
            "What is at the heart of {a}?",
            "the gist of {a}, please",
            "What matters most about {a}, in short?",
            "Sum {a} up.",
        ),
        (
            "Explain how the parts of {a} hang together.",
            "Give a full account of the circle of {a}.",
            "Which pattern shows in {a}?",
            "Tell me at length about {a}.",
            "Lay out everything around {a}.",
            "How did matters develop around {a}?",
            "What should a newcomer know about {a}?",
            "Describe {a} as one whole.",
        ),
    ),
}
_NOT_CHECKED = frozenset(["said"])


@dataclass(frozen=True)
class _Said:
    sentence: str
    speaker: str | None

    @property
    def whole(self) -> str:
        return f"{self.speaker} said: {self.sentence}" if self.speaker else self.sentence


class SynthesisScript:
    """Answers the calls of synthesis as a good teacher would."""

    def reply(self, name: str, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return the reply of schema `name`. Raises KeyError for a schema of another step."""
        told, asked = messages[0]["content"], messages[-1]["content"]
        if name == "LocalQuestion":
            return _local_question(told, asked)
        if name == "LocalAnswer":
            return _local_answer(asked)
        if name == "Grounding":
            return _judge(asked)
        return _pair(name, told, asked)


def _line(label: str, text: str) -> str:
    match = re.search(rf"^{label}: (.+)$", text, re.MULTILINE)
    return match[1] if match else ""


def _evidence(asked: str) -> str:
    match = re.search(r"<evidence>\n(.*)\n</evidence>", asked, re.DOTALL)
    assert match is not None, asked
    return match[1]


def _said(evidence: str) -> list[_Said]:
    """Return the sentences of an evidence text, without the names of their documents."""
    said: list[_Said] = []
    for block in evidence.split("\n"):
        # A block starts with the name of its document, a speaker, an entity, or with none.
        opening = re.match(
            r'((?:The (?:entry|conversation) of [^:]+|"[^"\n]+"[^:"]*)):(?: |$)', block
        )
        block = block[opening.end() :] if opening else block
        speaker = re.match(r"([A-Z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,3}): ", block)
        block = block[speaker.end() :] if speaker else block
        said += [
            _Said(block[start:end], speaker[1] if speaker else None)
            for start, end in split_sentences(block)
        ]
    return said


def _facts(asked: str) -> list[tuple[SentenceFact, _Said]]:
    """Return what the sentences that name the subject answer, in questions that name it too."""
    names = _line("Subject", asked).split(" and ")
    source = _line("Written in", asked)
    day = re.search(r"\d{1,2} [A-Z][a-z]+ \d{4}$", source)
    anchor = f"on {day[0]}" if day else f"according to {source}"
    said = _said(_evidence(asked))
    # "Ansel" speaks of Ansel Quorrie.
    parts = [[name, *re.findall(r"\b[A-Z]\w{2,}", name)] for name in names]
    naming = [one for one in said if all(names_one_of(one.whole, each) for each in parts)]
    naming = naming or [one for one in said if any(names_one_of(one.whole, p) for p in parts)]
    facts = [
        (fact, one)
        for one in naming
        for fact in facts_of(Statement(one.sentence, one.speaker, anchor))
        if len(fact.gold.split()) <= 10
        and len(fact.direct) <= 250
        and (names_one_of(fact.direct, names) or (fact.names and names_one_of(fact.gold, names)))
    ]
    return facts or [(fact, one) for one in naming for fact in _with_gap(one.whole, names)]


def _with_gap(sentence: str, names: Sequence[str]) -> list[SentenceFact]:
    """Return the sentence with its end left out, for what no other question can be made of."""
    words = sentence.split()
    count = min(5, len(words) // 2)
    gold = " ".join(words[-count:]).strip(' .!?"”’,;:)')
    cloze = f"{' '.join(words[:-count])} {GAP}"
    if len(sentence) > 280 or count < 2 or names_one_of(gold, names) or gold not in sentence:
        return []
    asked = f"is missing in this about {names[0]}: {cloze}"
    fields = f"What {asked}?", f"what {asked}", f"{cloze}.", f"{names[0]}: {cloze}"
    return [SentenceFact("what", gold, *fields, tuple(names))]


def _local_question(told: str, asked: str) -> dict[str, Any]:
    facts = _facts(asked)
    if not facts:
        return {
            "thought": "The evidence only mentions the subject and states nothing about it.",
            "decline": True,
            "question": "",
            "short_wordings": [],
            "long_wordings": [],
        }
    subject = _line("Subject", asked)
    fact, said = facts[seeded_int(0, subject) % len(facts)]
    fields = fact_fields(fact.direct, fact.indirect, fact.cloze, fact.keywords)
    return {
        "thought": f"The evidence says: {said.sentence} What is worth asking for is {fact.gold!r}. "
        f"The question must name {subject} and the occasion to stand alone.",
        "decline": False,
        "question": fact.direct,
        "short_wordings": _worded(fields, "short", _wanted(told)[0], fact.direct),
        "long_wordings": _worded(fields, "long", _wanted(told)[1], fact.direct),
    }


def _wanted(told: str) -> tuple[int, int]:
    numbers = re.findall(r"exactly (\d+) (?:other )?ways", told)
    return int(numbers[0]), int(numbers[1])


def _worded(fields: Mapping[str, str], style: Style, count: int, question: str) -> list[str]:
    forms = [
        form
        for form in FORMS
        if form.needs in FACT_NEEDS
        and (form.role, form.style) == ("shared", style)
        and not is_undated(form.pattern)
    ]
    forms.sort(key=lambda form: seeded_int(0, question, form.name))
    worded = {normalised(text): text for text in (form.ask(fields) for form in forms)}
    worded.pop(normalised(question), None)
    return list(worded.values())[:count]


def _local_answer(asked: str) -> dict[str, Any]:
    question = _line("Question", asked)
    for fact, said in _facts(asked):
        if fact.direct == question:
            return {
                "thought": f"What answers it is {fact.gold!r}. It stands in the sentence that "
                f"begins {said.whole[:60]!r}, and leaves no doubt.",
                "decline": False,
                "short_answer": fact.gold,
                "long_answer": said.whole,
            }
    return {
        "thought": "No sentence answers it.",
        "decline": True,
        "short_answer": "",
        "long_answer": "",
    }


def _pair(name: str, told: str, asked: str) -> dict[str, Any]:
    question, short_forms, long_forms = _ASKS[name]
    if name == "RelationshipPair":
        names = [_line("First subject", asked), _line("Second subject", asked)]
    else:
        names = [_line("Subject", asked) or _line("Group", asked)]
    fields = dict(zip("ab", names, strict=False))
    sentences = [said.whole for said in _said(_evidence(asked))]
    naming = [s for s in sentences if all(names_one_of(s, [each]) for each in names)] or sentences
    match = re.search(r"in about (\d+) words", told)
    assert match is not None, told
    short, long = _wanted(told)
    return {
        "thought": f"The pieces tell of {' and '.join(names)}: what was done, and when and where. "
        "One broad question covers them.",
        "decline": not naming,
        "question": question.format_map(fields) if naming else "",
        "short_wordings": [form.format_map(fields) for form in short_forms[:short] if naming],
        "long_wordings": [form.format_map(fields) for form in long_forms[:long] if naming],
        "short_answer": naming[0] if naming else "",
        "long_answer": _within(sentences, int(match[1]), naming[0]) if naming else "",
    }


def _within(sentences: Iterable[str], words: int, first: str) -> str:
    """Return `first` and, after it, what else fits in so many words."""
    kept = [first]
    for sentence in sentences:
        if sentence not in kept and len(" ".join([*kept, sentence]).split()) <= words:
            kept.append(sentence)
    return f"{kept[0]}\n\n{' '.join(kept[1:])}".strip()


def _judge(asked: str) -> dict[str, Any]:
    match = re.search(r"\nShort answer: (.*)\nLong answer:\n(.*)\n\nWordings:", asked, re.DOTALL)
    assert match is not None, asked
    answers = f"{match[1]} {match[2]}"
    missing = telling_words(answers) - telling_words(_evidence(asked)) - _NOT_CHECKED
    checked = [" ".join(answers[a:b].split()[:6]) for a, b in split_sentences(answers)]
    found = "; ".join(f"{words!r} stands in the evidence" for words in checked[:6])
    lacking = f"The evidence does not say {', '.join(sorted(missing))}."
    return {
        "thought": lacking if missing else f"{found}. The question is answered by it.",
        "grounded": not missing,
        "answers_question": True,
        "faulty_wordings": [],
    }
