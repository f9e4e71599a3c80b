"""Question-answer pairs from a corpus and its graph, written by a teacher.

Beside the teacher's pairs stand those that cost nothing: passages, template questions about
entities, relationships and communities, and refusals about absent names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel

from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.inference.calls import Call, Failed, Teacher
from ragtuned_pipeline.inference.engine import ChatEngine, chat
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis import gates
from ragtuned_pipeline.synthesis.community import community_facts
from ragtuned_pipeline.synthesis.entity import entity_facts
from ragtuned_pipeline.synthesis.facts import (
    COMMUNITY,
    ENTITY,
    KINDS,
    LOCAL,
    RELATIONSHIP,
    Fact,
    Wording,
    normalised,
    telling_part,
)
from ragtuned_pipeline.synthesis.forms import Style
from ragtuned_pipeline.synthesis.items import (
    LOCAL_STREAM,
    PASSAGE_STREAM,
    Item,
    Memory,
    community_items,
    entity_items,
    held_out_items,
    local_items,
    relationship_items,
    within_limits,
)
from ragtuned_pipeline.synthesis.local import (
    PASSAGE_GENERATOR,
    fault,
    near_duplicates,
    passages,
)
from ragtuned_pipeline.synthesis.pairs import (
    asked_once,
    drop_equal_questions,
    new_wording,
    pairs_table,
    worded,
)
from ragtuned_pipeline.synthesis.questions import gives_away
from ragtuned_pipeline.synthesis.relationship import relationship_facts
from ragtuned_pipeline.synthesis.replies import (
    CommunityPair,
    EntityPair,
    Grounding,
    LocalAnswer,
    LocalQuestion,
    Pair,
    Question,
    RelationshipPair,
    answer_fault,
    generator,
    prompt,
    question_fault,
    wordings_wanted,
)
from ragtuned_pipeline.synthesis.sources import Names, read_sources
from ragtuned_pipeline.synthesis.stated import DocumentsOf
from ragtuned_pipeline.synthesis.synthesise import Synthesis, silent
from ragtuned_pipeline.synthesis.unanswerable import unanswerable_facts
from ragtuned_pipeline.tables import Failure, failures_table

R = TypeVar("R", bound=BaseModel)

_WORDING_TOKENS = 60  # of one wording, at most
_BASE_ANSWER_TOKENS = 64
_MOST_GOLD_WORDS = 10  # a longer short answer is scored by its telling part


def synthesise_with_teacher(
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    communities: pa.Table,
    community_reports: pa.Table,
    teacher: Teacher,
    base: ChatEngine | None,
    settings: SynthesisSettings,
    system: str | None,
) -> Synthesis:
    """Return all pairs of the corpus, kept and dropped.

    The tables depend on the replies, not on the order in which they come. A pair that a gate drops
    keeps a row with the reason; what the teacher declined to ask is counted; what it failed to
    reply to is a failure.

    Args:
        base: the model before tuning, asked what it knows already; None to ask nothing.
        system: the system message with which `base` is asked, as in tuning.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    settings = _with_wordings_that_fit(settings)
    sources = read_sources(documents, text_units)
    names = Names(entities)
    documents_of = DocumentsOf(text_units)
    memory = Memory(sources, names, entities, relationships, settings)
    given = settings, memory.held_out
    reports = _without_held_out(community_reports, communities, memory)
    templates = {
        PASSAGE_STREAM: [asked_once(f, settings) for f in passages(sources, names, *given)],
        ENTITY: [
            # A description that restated held-out sentences only is no missing one.
            replace(fact, drop="held out") if fact.links.entities[0] in memory.emptied else fact
            for fact in entity_facts(memory.entities, names, documents_of, *given)
        ],
        RELATIONSHIP: relationship_facts(relationships, names, documents_of, *given),
        COMMUNITY: community_facts(communities, reports, documents_of, *given),
    }
    items = {
        LOCAL_STREAM: local_items(memory, text_units, relationships),
        ENTITY: entity_items(memory, templates[ENTITY], settings),
        RELATIONSHIP: relationship_items(memory, templates[RELATIONSHIP], relationships, settings),
        COMMUNITY: community_items(
            memory, templates[COMMUNITY], _paragraphs(communities, reports), settings
        ),
    }
    chosen, facts = _within_limits(items, templates, settings)
    local = [item for item in chosen if item.kind == LOCAL]
    share = settings.held_out_fact_share
    held_out = held_out_items(memory, math.ceil(len(local) * share / (1 - share)), settings)

    asked = _Asked(teacher, settings)
    drafts = [
        *asked.local([*local, *held_out], names),
        *asked.pairs([item for item in chosen if item.kind != LOCAL], names),
    ]
    # The held-out ones come last: of two that are alike the other one is kept.
    drafts.sort(key=lambda draft: (draft.item.held_out, -draft.item.importance, draft.item.id))
    drafts = _without_duplicates(drafts, settings)
    drafts = asked.judged(drafts)
    if base is not None:
        drafts = _without_known(drafts, base, settings, system)

    facts += [_fact(draft) for draft in drafts]
    corpus_text = "\n".join(text or "" for text in documents.column("text").to_pylist())
    facts += _refusals(facts, names, corpus_text, settings)
    facts.sort(key=_place)
    rows = worded(facts, settings)
    drop_equal_questions(rows)
    return Synthesis(
        pairs_table(rows),
        new_wording(facts, rows, settings),
        failures_table([*silent(sources), *asked.failures]),
        asked.declined,
    )


def _with_wordings_that_fit(settings: SynthesisSettings) -> SynthesisSettings:
    """A fact has no more wordings than a document may have rows."""
    fitting = min(settings.train_wordings, settings.rows_per_document, settings.max_rows)
    return settings.model_copy(update={"train_wordings": fitting})


def _place(fact: Fact) -> tuple[Any, ...]:
    """By kind; passages after what is asked of single sentences; the most important first."""
    passage = fact.generator == PASSAGE_GENERATOR
    return KINDS.index(fact.kind), passage, -fact.importance, not fact.wordings, fact.id


# ---- what is asked about ----


def _without_held_out(reports: pa.Table, communities: pa.Table, memory: Memory) -> pa.Table:
    """Return the reports without the sentences that restate a held-out one."""
    units = {row["community"]: row["text_unit_ids"] for row in communities.to_pylist()}
    rows = reports.to_pylist()
    for row in rows:
        of = units.get(row["community"], ())
        row["summary"] = memory.without_held_out(row["summary"], of)
        row["findings"] = [
            {name: memory.without_held_out(text, of) for name, text in finding.items()}
            for finding in row["findings"] or ()
        ]
    return pa.Table.from_pylist(rows, schema=reports.schema)


def _paragraphs(communities: pa.Table, reports: pa.Table) -> dict[str, list[str]]:
    """Return community id -> the paragraphs of its report."""
    ids = {row["community"]: row["id"] for row in communities.to_pylist()}
    return {
        ids[row["community"]]: [
            text
            for text in (
                row["summary"],
                *(
                    f"{finding['summary']}: {finding['explanation']}"
                    for finding in row["findings"] or ()
                    if finding["explanation"]
                ),
            )
            if text
        ]
        for row in reports.to_pylist()
        if row["community"] in ids
    }


def _within_limits(
    items: Mapping[str, Sequence[Item]],
    templates: Mapping[str, Sequence[Fact]],
    settings: SynthesisSettings,
) -> tuple[list[Item], list[Fact]]:
    """Return the items to ask about, and all template facts, those without a place dropped."""
    streams: dict[str, list[Item | Fact]] = {}
    for stream in {**items, **templates}:
        askable = [fact for fact in templates.get(stream, ()) if fact.drop is None]
        streams[stream] = [*items.get(stream, ()), *askable]
        if stream != LOCAL_STREAM:  # local items stand in turns already
            # Stable: of equal importance the teacher's pair comes before the template's.
            streams[stream].sort(key=lambda one: -one.importance)
    chosen: list[Item] = []
    facts = [fact for ones in templates.values() for fact in ones if fact.drop is not None]
    taken = within_limits(streams, settings)
    for stream, ones in streams.items():
        for one, has_place in zip(ones, taken[stream], strict=True):
            if isinstance(one, Fact):
                facts.append(one if has_place else replace(one, drop=gates.ROW_LIMIT))
            elif has_place:
                chosen.append(one)
    return chosen, facts


def _refusals(
    facts: Sequence[Fact], names: Names, corpus_text: str, settings: SynthesisSettings
) -> list[Fact]:
    """Return refusals about absent names, as many as the row limit leaves room for."""
    live = [fact for fact in facts if fact.drop is None]
    taught = sum(
        1 if fact.generator == PASSAGE_GENERATOR else settings.train_wordings
        for fact in live
        if not fact.held_out
    )
    room = max(0, settings.max_rows - taught) // settings.train_wordings
    return unanswerable_facts(live, names, corpus_text, settings)[:room]


# ---- asking ----


@dataclass(frozen=True)
class _Reply(Generic[R]):
    """What is kept of a completed call."""

    value: R
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class _Draft:
    """A pair on its way through the gates."""

    item: Item
    generator: str
    asked: str  # the question in its plainest form
    wordings: tuple[Wording, ...]
    short: str = ""
    long: str = ""
    gold: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    drop: str | None = None

    @property
    def live(self) -> bool:
        return self.drop is None and any(wording.drop is None for wording in self.wordings)

    def paid(self, done: _Reply[Any]) -> _Draft:
        return replace(
            self,
            prompt_tokens=self.prompt_tokens + done.prompt_tokens,
            completion_tokens=self.completion_tokens + done.completion_tokens,
        )


class _Asked:
    """Asks the teacher, and keeps what failed and how much was declined."""

    def __init__(self, teacher: Teacher, settings: SynthesisSettings) -> None:
        self._teacher = teacher
        self._settings = settings
        self.failures: list[Failure] = []
        self.declined = 0

    def local(self, items: Sequence[Item], names: Names) -> list[_Draft]:
        """Ask for questions, then for the answers to those that a row can use."""
        questions = self._completed(self._local_question(item) for item in items)
        made = generator("local", "local_question", "local_answer")
        drafts: dict[str, _Draft] = {}
        for item in items:
            if item.id in questions and not self._declines(questions[item.id].value):
                draft = self._draft(item, made, questions[item.id].value, names)
                drafts[item.id] = draft.paid(questions[item.id])
        answers = self._completed(_local_answer(draft) for draft in drafts.values() if draft.live)
        answered: list[_Draft] = []
        for key, draft in drafts.items():
            if not draft.live:
                answered.append(replace(draft, drop=draft.wordings[0].drop))
            elif key in answers and not self._declines(answers[key].value):
                reply = answers[key].value
                answered.append(
                    self._answered(draft, reply.short_answer, reply.long_answer).paid(answers[key])
                )
        return answered

    def pairs(self, items: Sequence[Item], names: Names) -> list[_Draft]:
        """Ask for global pairs: question and answers in one reply."""
        replies = self._completed(self._pair(item) for item in items)
        drafts: list[_Draft] = []
        for item in items:
            if item.id not in replies or self._declines(replies[item.id].value):
                continue
            reply = replies[item.id].value
            kind = item.kind.removeprefix("global_")
            draft = self._draft(item, generator(kind, kind), reply, names).paid(replies[item.id])
            drafts.append(self._answered(draft, reply.short_answer, reply.long_answer))
        return drafts

    def judged(self, drafts: Sequence[_Draft]) -> list[_Draft]:
        """Ask the judge, who sees the evidence, about every draft that may still be used."""
        verdicts = self._completed(_judge(draft) for draft in drafts if draft.live)
        judged: list[_Draft] = []
        for draft in drafts:
            if not draft.live:
                judged.append(draft)
            elif draft.item.id in verdicts:
                done = verdicts[draft.item.id]
                judged.append(_with_verdict(draft.paid(done), done.value))
        return judged

    def _completed(self, calls: Iterable[Call[R]]) -> dict[str, _Reply[R]]:
        """Return the replies by item, without the prompts; note the calls that failed."""
        done: dict[str, _Reply[R]] = {}
        for outcome in self._teacher.complete(calls):
            if isinstance(outcome, Failed):
                reason = f"{outcome.call.step}: {outcome.reason}"
                self.failures.append(
                    Failure("synthesis", outcome.call.item_id, reason, outcome.attempts)
                )
            else:
                done[outcome.call.item_id] = _Reply(
                    outcome.value, outcome.prompt_tokens, outcome.completion_tokens
                )
        return done

    def _declines(self, reply: Question | LocalAnswer) -> bool:
        self.declined += reply.decline
        return reply.decline

    def _local_question(self, item: Item) -> Call[LocalQuestion]:
        short, long = wordings_wanted(self._settings, item.held_out)
        messages = prompt("local_question").messages(
            short_wordings=short - 1,
            long_wordings=long,
            subject=list(item.subjects),
            about=item.about[0],
            source=item.source,
            evidence=item.evidence,
        )
        return Call(
            "local_question",
            item.id,
            messages,
            LocalQuestion,
            500 + (short + long) * _WORDING_TOKENS,
            lambda reply: question_fault(reply, short, long),
        )

    def _pair(self, item: Item) -> Call[Pair]:
        short, long = wordings_wanted(self._settings, item.held_out)
        schema, slots = _PAIR_SLOTS[item.kind]
        messages = prompt(item.kind.removeprefix("global_")).messages(
            short_wordings=short - 1,
            long_wordings=long,
            long_words=item.long_words,
            evidence=item.evidence,
            **slots(item),
        )
        return Call(
            f"{item.kind.removeprefix('global_')}_pair",
            item.id,
            messages,
            schema,
            1000 + (short + long) * _WORDING_TOKENS + 3 * item.long_words,
            lambda reply: question_fault(reply, short, long) or answer_fault(reply),
        )

    def _draft(self, item: Item, made: str, reply: Question, names: Names) -> _Draft:
        short, long = wordings_wanted(self._settings, item.held_out)
        asked = reply.question.strip()
        wordings = tuple(
            replace(wording, drop=_question_fault(wording.question, item, names))
            for wording in _wordings(asked, reply, short, long)
        )
        return _Draft(item, made, asked, wordings)

    def _answered(self, draft: _Draft, short: str, long: str) -> _Draft:
        """Put the answers to the draft, and drop what they make unfit."""
        item, limit = draft.item, self._settings.max_answer_characters
        short, long = " ".join(short.split()), long.strip()
        given = [name for names in item.named for name in names]
        gold = short.strip(" .")
        if item.kind != LOCAL or len(gold.split()) > _MOST_GOLD_WORDS:
            gold = telling_part(short, given)
        short = short[:1].upper() + short[1:]
        if normalised(gold) not in normalised(long):  # what is asked for comes first
            long = f"{short.rstrip('.')}. {long}"
        drop = draft.drop
        if gates.is_refusal(short) or gates.is_refusal(long):
            drop = gates.REFUSAL
        elif gates.speaks_of_its_source(short) or gates.speaks_of_its_source(long):
            drop = gates.NOT_SELF_CONTAINED
        elif item.kind == LOCAL:
            drop = fault(draft.asked, gold)
        wordings = tuple(
            replace(
                wording,
                drop=wording.drop
                or (gates.GIVEN_AWAY if gives_away(wording.question, gold) else None)
                or (gates.TOO_LONG if len(_answer(short, long, wording)) > limit else None),
            )
            for wording in draft.wordings
        )
        return replace(draft, short=short, long=long, gold=gold, wordings=wordings, drop=drop)


def _answer(short: str, long: str, wording: Wording) -> str:
    return short if wording.style == "short" else long


def _entity_slots(item: Item) -> dict[str, Any]:
    return {
        "subject": item.subjects[0],
        "type": item.type,
        "about": item.about[0],
        "part": item.source,
    }


def _relationship_slots(item: Item) -> dict[str, Any]:
    first, second = item.subjects
    first_about, second_about = item.about
    return {
        "first": first,
        "first_about": first_about,
        "second": second,
        "second_about": second_about,
        "part": item.source,
    }


def _community_slots(item: Item) -> dict[str, Any]:
    return {"subject": item.subjects[0], "members": list(item.members)}


_PAIR_SLOTS: Mapping[str, tuple[type[Pair], Callable[[Item], dict[str, Any]]]] = {
    ENTITY: (EntityPair, _entity_slots),
    RELATIONSHIP: (RelationshipPair, _relationship_slots),
    COMMUNITY: (CommunityPair, _community_slots),
}


def _local_answer(draft: _Draft) -> Call[LocalAnswer]:
    item = draft.item
    messages = prompt("local_answer").messages(
        question=draft.asked,
        subject=list(item.subjects),
        about=item.about[0],
        source=item.source,
        evidence=item.evidence,
    )
    return Call("local_answer", item.id, messages, LocalAnswer, 1000, answer_fault)


def _judge(draft: _Draft) -> Call[Grounding]:
    messages = prompt("judge").messages(
        question=draft.asked,
        wordings=[wording.question for wording in draft.wordings],
        short_answer=draft.short,
        long_answer=draft.long,
        evidence=draft.item.evidence,
    )
    return Call("judge", draft.item.id, messages, Grounding, 1000)


def _wordings(asked: str, reply: Question, short: int, long: int) -> Iterator[Wording]:
    """Short and long ones take turns, so that the last ones, held out, are of both styles."""
    styles: dict[Style, list[str]] = {
        "short": [asked, *reply.short_wordings],
        "long": list(reply.long_wordings),
    }
    seen: set[str] = {""}
    kept: list[list[Wording]] = []
    for (style, questions), most in zip(styles.items(), (short, long), strict=True):
        fresh: list[Wording] = []
        for question in questions:
            plain = " ".join(question.split())
            if normalised(plain) not in seen and len(fresh) < most:
                seen.add(normalised(plain))
                fresh.append(Wording(plain, style, f"teacher-{style}-{len(fresh) + 1:02d}"))
        kept.append(fresh)
    for turn in range(max(map(len, kept))):
        yield from (of_style[turn] for of_style in kept if turn < len(of_style))


# ---- gates ----


def _question_fault(question: str, item: Item, names: Names) -> str | None:
    """Return why the question cannot be asked of somebody who sees no document, or None."""
    if gates.speaks_of_its_source(question) or gates.is_undated(question):
        return gates.NOT_SELF_CONTAINED
    if all(gates.names_one_of(question, each) for each in item.named):
        return None
    # A local question may go round by another name: "Who hired Maud Okrent?" of her employer.
    if item.kind == LOCAL and names.in_text(question):
        return None
    return gates.NO_SUBJECT


def _without_duplicates(drafts: Sequence[_Draft], settings: SynthesisSettings) -> list[_Draft]:
    """Drop the later of two pairs that ask the same, or nearly so, and have the same gold."""
    seen: set[tuple[str, str]] = set()
    exact: set[int] = set()
    asked: dict[int, tuple[str, str]] = {}
    for number, draft in enumerate(drafts):
        if not draft.live:
            continue
        key = (_bare(draft.gold), normalised(draft.asked))
        if key in seen:
            exact.add(number)
        seen.add(key)
        # Words in alphabetical order: a question turned round is nearly the same, but not where
        # it asks from the other side of a relationship.
        words = sorted(key[1].split()) if draft.item.kind == LOCAL else [key[1]]
        asked[number] = (key[0], " ".join(words))
    near = near_duplicates(asked, settings.near_duplicate_ratio)
    reasons = dict.fromkeys(near, gates.NEAR_DUPLICATE) | dict.fromkeys(
        exact, gates.EXACT_DUPLICATE
    )
    return [
        replace(draft, drop=reasons[number]) if number in reasons else draft
        for number, draft in enumerate(drafts)
    ]


def _bare(gold: str) -> str:
    """ "in 1987", "the harbour": without the words that make no difference."""
    return re.sub(r"^(?:(?:in|on|at|by|to|for|from|the|a|an) )+", "", normalised(gold))


def _with_verdict(draft: _Draft, verdict: Grounding) -> _Draft:
    if not verdict.grounded:
        return replace(draft, drop=gates.NOT_GROUNDED)
    if not verdict.answers_question:
        return replace(draft, drop=gates.BESIDE_THE_POINT)
    faulty = set(verdict.faulty_wordings)
    wordings = tuple(
        replace(wording, drop=wording.drop or gates.OTHER_QUESTION) if number in faulty else wording
        for number, wording in enumerate(draft.wordings, 1)
    )
    return replace(draft, wordings=wordings)


def _without_known(
    drafts: Sequence[_Draft], base: ChatEngine, settings: SynthesisSettings, system: str | None
) -> list[_Draft]:
    """Drop what the base model answers rightly already, but for `settings.known_share` of it."""
    asked = [n for n, draft in enumerate(drafts) if draft.live and not draft.item.held_out]
    replies = base.generate([chat(drafts[n].asked, system) for n in asked], _BASE_ANSWER_TOKENS)
    known = {
        n
        for n, reply in zip(asked, replies, strict=True)
        if f" {normalised(drafts[n].gold)} " in f" {normalised(reply.text)} "
        and seeded_int(settings.seed, "known", drafts[n].item.id) >= settings.known_share * 2**64
    }
    return [
        replace(draft, drop=gates.KNOWN) if number in known else draft
        for number, draft in enumerate(drafts)
    ]


def _fact(draft: _Draft) -> Fact:
    item = draft.item
    return Fact(
        kind=item.kind,
        key="\n".join([item.id, normalised(draft.asked), normalised(draft.gold)]),
        gold=draft.gold,
        short=draft.short,
        long=draft.long,
        asked={"direct": ({"direct": draft.asked, "plain": _plain(draft.asked)},)},
        links=item.links,
        generator=draft.generator,
        importance=item.importance,
        draw=item.draw,
        drop=draft.drop,
        held_out=item.held_out,
        wordings=draft.wordings,
        prompt_tokens=draft.prompt_tokens,
        completion_tokens=draft.completion_tokens,
    )


_OPENING = re.compile(
    r"(?:Who|Whom|Whose|What|Which|When|Where|Why|How|In|On|At|By|For|From|To|With|Under|During|"
    r"Did|Does|Do|Is|Are|Was|Were|Has|Have|Had|Can|Could|After|Before)\b"
)


def _plain(question: str) -> str:
    """Return a question as it stands inside a sentence: no capital but a name's, no mark."""
    lowered = question[:1].lower() + question[1:] if _OPENING.match(question) else question
    return lowered.rstrip("?")
