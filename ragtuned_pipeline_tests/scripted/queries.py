"""A scripted teacher's evaluation questions: made of the prompt's text alone, always the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.questions.global_queries import question_templates
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.synthesis.gates import is_undated, names_one_of, speaks_of_its_source
from ragtuned_pipeline.synthesis.questions import SentenceFact, Statement, facts_of, gives_away

SCHEMAS = frozenset(
    ["CorpusDescription", "Personas", "Tasks", "GlobalQuestions", "EvaluationQuestion"]
)
_DESCRIPTION = 1200  # characters
_EVIDENCE = re.compile(
    r"(?:^Written in: ([^\n]+)\n)?^<evidence>\n(.*?)\n</evidence>", re.DOTALL | re.MULTILINE
)
_SPEAKER = re.compile(r"([A-Z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,3}): ")
_PROPER = re.compile(r"\b[A-Z]\w{3,}")

_Fact = tuple[SentenceFact, str]  # with the sentence that states it


def reply(name: str, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the reply of schema `name`. Raises KeyError for a schema of another step."""
    told, asked = messages[0]["content"], messages[-1]["content"]
    match name:
        case "CorpusDescription":
            parts = " ".join(re.sub(r"</?part[^>]*>|^[#-] ?", " ", asked, flags=re.M).split())
            return {"description": parts[:_DESCRIPTION].rpartition(" ")[0]}
        case "Personas":
            interest = "They want to understand how everything hangs together."
            return {"personas": [{"name": p, "interest": interest} for p in question_templates()]}
        case "Tasks":
            tasks = question_templates()[_line("Person", asked)]
            return {"tasks": [task for task, _ in tasks]}
        case "GlobalQuestions":
            questions = dict(question_templates()[_line("Person", asked)])[_line("Task", asked)]
            wanted = int(re.findall(r"exactly (\d+)", told)[-1])
            return {"questions": (questions * 2)[:wanted]}
        case "EvaluationQuestion":
            return _question(asked)
    raise KeyError(name)


def _line(label: str, text: str) -> str:
    match = re.search(rf"^{label}: (.+)$", text, re.MULTILINE)
    return match[1] if match else ""


def _question(asked: str) -> dict[str, Any]:
    if subject := _line("Subject", asked):
        return _local(subject.split(" and "), asked)
    if source := _line("First subject", asked):
        return _reverse(source, _line("Second subject", asked), asked)
    return _multi_hop(*(_line(label, asked) for label in ("Start", "Bridge", "End")), asked)


def _local(names: Sequence[str], asked: str) -> dict[str, Any]:
    facts = [(fact, said) for fact, said in _facts(asked) if names_one_of(fact.direct, names)]
    if facts:
        fact, said = facts[seeded_int(0, asked) % len(facts)]
        return _asked(fact.direct, fact.gold, [said])
    sentences = _ordinary(asked)
    for said in [one for one in sentences if names_one_of(one, names)] or sentences:
        opening, gold = _cut(said)
        question = f"How does this about {names[0]} end: {opening} ...?"
        fair = not gives_away(question, gold) and not is_undated(question)
        if fair and not names_one_of(gold, names):
            return _asked(question, gold, [said])
    return _declined("the evidence only mentions it")


def _reverse(source: str, target: str, asked: str) -> dict[str, Any]:
    told = [said for _, _, said in _said(asked)]
    both = [s for s in told if names_one_of(s, [source]) and names_one_of(s, [target])]
    questions = [(f"Who or what is the gap: {_without(s, source, '___')}", s) for s in both]
    questions += [(f"What goes with {target} here: {said}", said) for said in _ordinary(asked)]
    for question, said in questions:
        fair = len(question) < 400 and not is_undated(question)
        if fair and _names_only(question, target, source):
            return _asked(question, source, [said])
    return _declined("no sentence can be asked about")


def _multi_hop(start: str, bridge: str, end: str, asked: str) -> dict[str, Any]:
    told = list(_said(asked))
    for one, _, first in told:
        for other, _, second in told:
            apart = one != other or asked.count("<evidence>") == 1
            stated = names_one_of(first, [start]) and names_one_of(second, [end])
            both = names_one_of(first, [bridge]) and names_one_of(second, [bridge])
            lead, rest = _without(first, bridge, "..."), _without(second, bridge, "...")
            question = f"Who is ___, where ... is the same: {lead} {_without(rest, end, '___')}"
            fair = len(question) < 400 and not gives_away(question, end)
            if apart and stated and both and fair and _names_only(question, start, bridge):
                return _asked(question, end, list(dict.fromkeys([first, second])))
    pieces = {number: said for number, _, said in told}
    for said in _ordinary(asked):
        opening, gold = _cut(said)
        question = f"With {start} in mind, how does this end: {opening} ...?"
        fair = not gives_away(question, gold) and not is_undated(question)
        if fair and _names_only(question, start, bridge):
            return _asked(question, gold, [said, *pieces.values()])
    return _declined("the two facts do not meet")


def _ordinary(asked: str) -> list[str]:
    """Return sentences of ordinary length, from a place that the prompt decides on."""
    sentences = [said for _, _, said in _said(asked) if len(said.split()) > 5 and len(said) < 280]
    start = seeded_int(0, asked) % max(1, len(sentences))
    return sentences[start:] + sentences[:start]


def _cut(said: str) -> tuple[str, str]:
    words = said.split()
    return " ".join(words[:-3]), " ".join(words[-3:]).strip(' .!?"”’,;:)')


def _without(said: str, name: str, gap: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", gap, said)


def _names_only(question: str, named: str, hidden: str) -> bool:
    parts = set(_PROPER.findall(hidden)) - set(_PROPER.findall(named))
    given = parts.intersection(_PROPER.findall(question)) or names_one_of(question, [hidden])
    return names_one_of(question, [named]) and not given


def _facts(asked: str) -> list[_Fact]:
    """Return what the sentences of the evidence answer, with the sentences."""
    sources = [source for source, _ in _EVIDENCE.findall(asked)]
    found: list[_Fact] = []
    for number, speaker, said in _said(asked):
        day = re.search(r"\d{1,2} [A-Z][a-z]+ \d{4}$", sources[number])
        anchor = f"on {day[0]}" if day else f"according to {sources[number] or 'hearsay'}"
        statement = Statement(said, speaker, anchor)
        found += [(fact, said) for fact in facts_of(statement) if _fair(fact, said)]
    return found


def _said(asked: str) -> Iterator[tuple[int, str | None, str]]:
    """Yield (number of the piece of evidence, who speaks, sentence)."""
    for number, (_, text) in enumerate(_EVIDENCE.findall(asked)):
        for block in text.split("\n"):
            speaker = _SPEAKER.match(block)
            spoken = block[speaker.end() :] if speaker else block
            for start, end in split_sentences(spoken):
                yield number, speaker[1] if speaker else None, spoken[start:end]


def _fair(fact: SentenceFact, said: str) -> bool:
    return (
        fact.gold in said
        and len(fact.gold.split()) <= 10
        and len(fact.direct) <= 300
        and not gives_away(fact.direct, fact.gold)
        and not is_undated(fact.direct)
        and not speaks_of_its_source(fact.direct)
    )


def _asked(question: str, answer: str, evidence: list[str]) -> dict[str, Any]:
    return {
        "thought": f"The evidence says: {evidence[0]} What is worth asking for is {answer!r}.",
        "decline": False,
        "question": question,
        "answer": answer,
        "evidence": evidence,
    }


def _declined(why: str) -> dict[str, Any]:
    return {
        "thought": f"There is nothing to ask: {why}. A weak question would do harm.",
        "decline": True,
        "question": "",
        "answer": "",
        "evidence": [],
    }
