"""Local pairs: what single sentences state, and passages that hold every sentence."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import LOCAL, Fact, Links, is_held_out, normalised
from ragtuned_pipeline.synthesis.forms import fact_fields
from ragtuned_pipeline.synthesis.questions import (
    GAP,
    SentenceFact,
    Statement,
    facts_of,
    gives_away,
)
from ragtuned_pipeline.synthesis.sources import Line, Names, Source, spoken_date, weight

_FACT_GENERATOR = "template:questions@1"
PASSAGE_GENERATOR = "template:passage@1"
_LONGEST_GOLD = 120  # characters; a longer span is a clause, not an answer


# ---- facts of sentences ----


@dataclass(frozen=True, slots=True)
class _Stated:
    """One question core with the line and the document it comes from."""

    fact: SentenceFact
    line: Line
    source: Source
    entities: tuple[str, ...]


def sentence_facts(
    sources: Sequence[Source], names: Names, settings: SynthesisSettings
) -> list[Fact]:
    """Return the facts of every sentence, in order of importance.

    The same core with the same gold is one fact, stated several times. With different golds it is
    ambiguous: each is asked with its document named, and dropped where that does not help.
    """
    stated = [
        _Stated(fact, line, source, entities)
        for source in sources
        for line in source.lines
        if not line.heading
        for entities in (tuple(names.in_text(line.text)),)
        for fact in facts_of(_statement(line, source), names.kinds)
    ]
    made: list[Fact] = []
    for group in _by_core(stated).values():
        if len(_golds(group)) == 1:
            made.append(_fact(group, names, settings))
            continue
        placed = [_placed(one) for one in group]
        for smaller in _by_core(placed).values():
            fact = _fact(smaller, names, settings)
            made.append(fact if len(_golds(smaller)) == 1 else replace(fact, drop="ambiguous"))
    made.sort(key=lambda fact: (-fact.importance, fact.id))
    return _without_near_duplicates(made, settings.near_duplicate_ratio)


def _statement(line: Line, source: Source) -> Statement:
    return Statement(line.text, line.speaker if source.is_chat else None, source.anchor)


def _by_core(stated: Iterable[_Stated]) -> dict[str, list[_Stated]]:
    groups: dict[str, list[_Stated]] = defaultdict(list)
    for one in stated:
        groups[normalised(one.fact.direct)].append(one)
    return groups


def _golds(group: Iterable[_Stated]) -> set[str]:
    return {normalised(one.fact.gold) for one in group}


def _placed(one: _Stated) -> _Stated:
    """Name the document in the question, where it is not named already."""
    anchor = one.source.anchor
    if one.fact.direct.endswith(f"{anchor}?"):
        return one
    fact = replace(
        one.fact,
        direct=f"{one.fact.direct.rstrip('?')}, {anchor}?",
        indirect=f"{one.fact.indirect}, {anchor}",
        cloze=f"{one.fact.cloze} ({anchor[:1].upper()}{anchor[1:]})",
        keywords=f"{one.fact.keywords}, {anchor}",
    )
    return replace(one, fact=fact)


def _fact(group: Sequence[_Stated], names: Names, settings: SynthesisSettings) -> Fact:
    sentences = tuple(dict.fromkeys(normalised(one.line.text) for one in group))
    taught = [s for s in sentences if not _is_held_out(s, settings)]
    # The answer is a sentence that tuning may see, where one of them is.
    first = next((one for one in group if normalised(one.line.text) in taught), group[0])
    asked, line = first.fact, first.line
    fields = fact_fields(asked.direct, asked.indirect, asked.cloze, asked.keywords)
    entities = tuple(dict.fromkeys(entity for one in group for entity in one.entities))
    long = _said(line, first.source)
    if asked.gold not in long:  # "my assistant", asked for as "Anna's assistant"
        long = asked.cloze.replace(GAP, asked.gold)
    return Fact(
        kind=LOCAL,
        key=normalised(asked.direct) + "\n" + normalised(asked.gold),
        gold=asked.gold,
        short=asked.gold[:1].upper() + asked.gold[1:],
        long=long,
        asked=dict.fromkeys(("direct", "indirect", "cloze", "keywords"), (fields,)),
        links=Links(
            tuple(dict.fromkeys(one.source.id for one in group)),
            tuple(dict.fromkeys(unit for one in group for unit in one.line.units)),
            entities,
        ),
        generator=_FACT_GENERATOR,
        importance=weight(names, entities, asked.asks not in ("who", "what")),
        sentences=sentences,
        drop=fault(asked.direct, asked.gold),
        held_out=not taught,
    )


def _is_held_out(sentence: str, settings: SynthesisSettings) -> bool:
    return is_held_out(settings.seed, sentence, settings.held_out_fact_share)


def fault(question: str, gold: str) -> str | None:
    """Return why `gold` is no answer to `question`, or None."""
    if gives_away(question, gold):
        return "question holds its answer"  # by the name of the document in it
    if len(gold) > _LONGEST_GOLD:
        return "answer too long"
    if not re.search(r"\d|[^\W\d_]{2}", gold):
        return "answer too short"
    return None


def _said(line: Line, source: Source) -> str:
    if source.is_chat and line.speaker:
        return f"{line.speaker} said: {line.text}"
    return line.text


def _without_near_duplicates(facts: Sequence[Fact], ratio: float) -> list[Fact]:
    """Drop the later of two facts with equal gold whose questions are nearly the same.

    Different golds ("in 1987", "in 1978") make different facts however alike the questions are.
    """
    asked = {n: (normalised(f.gold), f.key) for n, f in enumerate(facts) if f.drop is None}
    near = near_duplicates(asked, ratio)
    return [
        replace(fact, drop="near duplicate") if number in near else fact
        for number, fact in enumerate(facts)
    ]


def near_duplicates(asked: Mapping[int, tuple[str, str]], ratio: float) -> set[int]:
    """Return the numbers of the questions that nearly repeat one with a lower number.

    Args:
        asked: number -> (block, question). Within a block only neighbours in alphabetical order
            are compared, 20 to each side.
        ratio: rapidfuzz's, 0 to 100, from which on two questions are nearly the same.
    """
    from rapidfuzz.fuzz import ratio as similarity

    blocks: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, (block, question) in asked.items():
        blocks[block].append((question, number))
    near: set[int] = set()
    for questions in blocks.values():
        questions.sort()
        for place, (question, number) in enumerate(questions):
            for other, neighbour in questions[place + 1 : place + 21]:
                later = max(number, neighbour)
                if later not in near and similarity(question, other, score_cutoff=ratio) > 0:
                    near.add(later)
    return near


# ---- passages ----


@dataclass(frozen=True, slots=True)
class _Passage:
    source: Source
    lines: tuple[Line, ...]
    text: str
    entities: tuple[str, ...]  # the most telling first


def passages(
    sources: Sequence[Source],
    names: Names,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> list[Fact]:
    """Return runs of consecutive sentences that together hold every sentence but the held-out ones.

    Each starts with a lead that names the document and its date, and repeats the last sentence of
    the one before it. Questions name the document, a date or a speaker, and what the run is about.
    """
    made = [
        passage
        for source in sources
        for passage in _cut(source, names, settings.max_answer_characters, held_out)
    ]
    parts = Counter(passage.source.id for passage in made)
    topics = Counter((passage.source.id, entity) for passage in made for entity in passage.entities)
    spoken = Counter(
        (speaker, entity)
        for passage in made
        for speaker in _speakers(passage)
        for entity in passage.entities
    )
    days = Counter(day for passage in made for day in _days(passage))
    facts: list[Fact] = []
    seen: Counter[str] = Counter()
    for passage in made:
        source = passage.source
        seen[source.id] += 1
        whole = parts[source.id] == 1
        label = source.label if whole else f"part {seen[source.id]} of {source.label}"
        titles = [names.titles[entity] for entity in passage.entities]
        about = [
            {"source": source.label, "topic": title}
            for entity, title in zip(passage.entities, titles, strict=True)
            if topics[source.id, entity] == 1 and title not in source.label
        ][:3]
        said = [
            {"speaker": speaker, "topic": names.titles[entity]}
            for speaker in _speakers(passage)
            for entity in passage.entities
            if spoken[speaker, entity] == 1 and speaker != names.titles[entity]
        ][:3]
        dated = [{"date": day} for day in _days(passage) if days[day] == 1]
        asked = {
            "source": ({"source": label},),
            "source_topic": tuple(about),
            "speaker_topic": tuple(said),
            "date": tuple(dated),
        }
        facts.append(
            Fact(
                kind=LOCAL,
                key=f"passage\n{source.id}\n{passage.lines[0].start}\n{passage.lines[-1].end}",
                gold=_first_words(passage),
                short=passage.text,
                long=passage.text,
                asked={core: fields for core, fields in asked.items() if fields},
                links=Links(
                    (source.id,),
                    tuple(dict.fromkeys(unit for line in passage.lines for unit in line.units)),
                    passage.entities,
                ),
                generator=PASSAGE_GENERATOR,
                importance=weight(names, passage.entities, telling=False),
                sentences=tuple(normalised(line.text) for line in passage.lines),
            )
        )
    return facts


def _cut(source: Source, names: Names, limit: int, held_out: Collection[str]) -> Iterable[_Passage]:
    opening = lead(source)
    run: list[Line] = []
    fresh = 0  # lines of the run that the passage before does not hold
    for line in source.lines:
        if normalised(line.text) in held_out:
            continue
        if fresh and len(written(opening, [*run, line])) > limit:
            yield _passage(source, opening, run, names)
            run, fresh = run[-1:], 0
            if len(written(opening, [*run, line])) > limit:
                run = []
        run.append(line)
        fresh += 1
    if fresh:
        yield _passage(source, opening, run, names)


def called(source: Source) -> str:
    """Return the name of the document, with its date where the name lacks it."""
    if source.date is None or source.date in source.label:
        return source.label
    return f"{source.label}, {source.date}"


def lead(source: Source) -> str:
    """Return what stands before sentences of the document: its name and date."""
    name = called(source)
    return name[:1].upper() + name[1:] + ":"


def written(opening: str, lines: Iterable[Line]) -> str:
    """Return `lines` as one text, each new speaker on a line of his own."""
    text, speaker = opening, None
    for line in lines:
        if line.speaker is not None and line.speaker != speaker:
            text += f"\n{line.speaker}: {line.text}"
        else:
            text += f" {line.text}"
        speaker = line.speaker
    return text


def _passage(source: Source, opening: str, lines: Sequence[Line], names: Names) -> _Passage:
    counts = Counter(entity for line in lines for entity in names.in_text(line.text))
    # Said often here and seldom elsewhere comes first.
    telling = sorted(counts, key=lambda e: (-counts[e] / names.frequency[e], names.titles[e]))
    return _Passage(source, tuple(lines), written(opening, lines), tuple(telling))


def _speakers(passage: _Passage) -> list[str]:
    return list(dict.fromkeys(line.speaker for line in passage.lines if line.speaker))


def _days(passage: _Passage) -> list[str]:
    days = (spoken_date(line.date) for line in passage.lines)
    return list(dict.fromkeys(day for day in days if day is not None))


def _first_words(passage: _Passage) -> str:
    """The opening of the first line that no other passage holds, at most six words."""
    line = passage.lines[min(1, len(passage.lines) - 1)]
    return " ".join(line.text.split()[:6])
