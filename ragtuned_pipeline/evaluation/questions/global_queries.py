"""Global questions: on the corpus as a whole, by persona and task, without a name of the corpus.

After the paper's code: 5 personas x 5 tasks x 5 questions. The offline form takes personas, tasks
and questions that fit any corpus from global_questions.txt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.evaluation.questions.corpus_description import STAGE
from ragtuned_pipeline.evaluation.questions.entity_names import EntityNames
from ragtuned_pipeline.evaluation.questions.quotes import flat
from ragtuned_pipeline.inference.calls import Call, Completed, T, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.synthesis import gates
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.tables import Failure

_PERSONAS = 5  # the paper's code
_TASKS = 5  # of a persona; the paper's code
_SPARE = 2  # questions of a task more than are needed: some are near duplicates
_NEAR = 90.0  # rapidfuzz's ratio from which on two questions are nearly the same
_FILES = Path(__file__).parent

_Phrase = Annotated[
    str,
    Field(min_length=1, max_length=200),
    BeforeValidator(lambda v: flat(v) if isinstance(v, str) else v),
]


class Persona(BaseModel):
    """Somebody who would ask; `interest` is what for."""

    name: _Phrase
    interest: Annotated[str, Field(max_length=600)]


class Personas(BaseModel):
    """Who would put questions to somebody who knows the whole corpus."""

    personas: list[Persona] = Field(max_length=20)


class Tasks(BaseModel):
    """What a persona would do with the corpus."""

    tasks: list[_Phrase] = Field(max_length=20)


class GlobalQuestions(BaseModel):
    """What a persona would ask for a task."""

    questions: list[Annotated[str, Field(max_length=400)]] = Field(max_length=100)


P = TypeVar("P", str, Persona)
A = TypeVar("A")


@dataclass(frozen=True)
class Asked:
    """A question with who asks it and what for."""

    persona: str
    task: str
    question: str


def template_questions(names: EntityNames, wanted: int) -> tuple[list[Asked], list[Failure]]:
    """Return `wanted` questions from global_questions.txt, in turns, and what there is to count."""
    if not wanted:
        return [], []
    asked: dict[tuple[str, str], list[str]] = {}
    failures: list[Failure] = []
    for persona, task, questions in _in_turns(question_templates()):
        named = [names.first_in(question) for question in questions]
        good = [q for q, name in zip(questions, named, strict=True) if name is None]
        asked[persona, task] = good
        failures += [
            Failure(STAGE, question, f"not asked: it holds {name!r}, a name of the corpus")
            for question, name in zip(questions, named, strict=True)
            if name is not None
        ]
    chosen, short = _kept(asked, wanted)
    return chosen, failures + short


def question_templates() -> dict[str, list[tuple[str, list[str]]]]:
    """Return persona -> (task, its questions), as they stand in global_questions.txt."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for line in (_FILES / "global_questions.txt").read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "#":
            tasks = found[text] = []
        elif mark == "##":
            tasks.append((text, []))
        else:
            tasks[-1][1].append(line)
    return found


def _in_turns(tasks: Mapping[str, Sequence[tuple[str, A]]]) -> Iterator[tuple[str, str, A]]:
    """Yield (persona, task, what belongs to it): every persona's first task, then the second."""
    for turn in zip_longest(*tasks.values()):
        for persona, found in zip(tasks, turn, strict=True):
            if found is not None:
                yield persona, *found


def questions_with_teacher(
    description: str, names: EntityNames, teacher: Teacher, wanted: int
) -> tuple[list[Asked], list[Failure]]:
    """Return at most `wanted` questions of personas and tasks that the teacher thinks of.

    A question that names an entity or speaks of its source is asked for again; a reply passes with
    as many good ones as are needed of its task, and what else it holds is dropped and counted.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    if not wanted:
        return [], []
    failures: list[Failure] = []
    replies = _completed(teacher, [_personas_call(description)], failures)
    people = [one for reply in replies.values() for one in _distinct(reply.personas, _PERSONAS)]
    calls = [_tasks_call(description, number, who) for number, who in enumerate(people, 1)]
    planned = _completed(teacher, calls, failures)
    tasks = {
        who.name: [(task, (f"{call.item_id} task {n}", who)) for n, task in enumerate(named, 1)]
        for call, who in zip(calls, people, strict=True)
        if call.item_id in planned
        for named in [_distinct(planned[call.item_id].tasks, _TASKS)]
    }
    # Where fewer questions are wanted than there are tasks, the first tasks are enough.
    chosen_tasks = list(_in_turns(tasks))[:wanted]
    each = math.ceil(wanted / (_PERSONAS * _TASKS))
    made = _completed(
        teacher,
        [
            _questions_call(description, names, item, who, task, each)
            for _, task, (item, who) in chosen_tasks
        ],
        failures,
    )
    asked: dict[tuple[str, str], list[str]] = {}
    for persona, task, (item, _) in chosen_tasks:
        questions = made[item].questions if item in made else []
        faults = [_fault(question, names) for question in questions]
        asked[persona, task] = [
            flat(q) for q, fault in zip(questions, faults, strict=True) if fault is None
        ]
        failures += [Failure(STAGE, item, f"question dropped: {f}") for f in faults if f]
    kept, short = _kept(asked, wanted)
    return kept, failures + short


def _kept(
    asked: Mapping[tuple[str, str], Sequence[str]], wanted: int
) -> tuple[list[Asked], list[Failure]]:
    """Return the first `wanted` questions, each persona and task in turn, none nearly twice.

    The turns go through `asked` in its order: everybody's first question, then the second.
    """
    from rapidfuzz.fuzz import ratio
    from rapidfuzz.process import extractOne

    chosen: list[Asked] = []
    known: list[str] = []
    repeated = 0
    for turn in zip_longest(*asked.values()):
        for (persona, task), question in zip(asked, turn, strict=True):
            if question is None or len(chosen) == wanted:
                continue
            plain = normalised(question)
            if extractOne(plain, known, scorer=ratio, score_cutoff=_NEAR):
                repeated += 1
                continue
            known.append(plain)
            chosen.append(Asked(persona, task, question))
    failures = []
    if repeated:
        reason = f"{repeated} questions nearly repeat others and are left out"
        failures.append(Failure(STAGE, "generated_global", reason))
    if len(chosen) < wanted:
        reason = f"{len(chosen)} of {wanted} questions: there are no more to choose from"
        failures.append(Failure(STAGE, "generated_global", reason))
    return chosen, failures


def _completed(teacher: Teacher, calls: Iterable[Call[T]], failures: list[Failure]) -> dict[str, T]:
    """Return the replies by item; note the calls that failed."""
    done: dict[str, T] = {}
    for outcome in teacher.complete(calls):
        if isinstance(outcome, Completed):
            done[outcome.call.item_id] = outcome.value
        else:
            reason = f"{outcome.call.step}: {outcome.reason}"
            failures.append(Failure(STAGE, outcome.call.item_id, reason, outcome.attempts))
    return done


def _personas_call(description: str) -> Call[Personas]:
    def check(reply: Personas) -> str | None:
        return _too_few("personas", [person.name for person in reply.personas], _PERSONAS)

    messages = load_prompt(_FILES / "prompts" / "personas.md.j2").messages(
        description=description, count=_PERSONAS
    )
    return Call("personas", "personas", messages, Personas, 1000, check)


def _tasks_call(description: str, number: int, person: Persona) -> Call[Tasks]:
    def check(reply: Tasks) -> str | None:
        return _too_few("tasks", reply.tasks, _TASKS)

    messages = load_prompt(_FILES / "prompts" / "tasks.md.j2").messages(
        description=description, persona=person.name, interest=person.interest, count=_TASKS
    )
    return Call("tasks", f"persona {number}", messages, Tasks, 600, check)


def _questions_call(
    description: str, names: EntityNames, item: str, person: Persona, task: str, needed: int
) -> Call[GlobalQuestions]:
    def check(reply: GlobalQuestions) -> str | None:
        faults = [_fault(question, names) for question in reply.questions]
        good = [q for q, fault in zip(reply.questions, faults, strict=True) if fault is None]
        wrong = next(filter(None, faults), None)
        short = _too_few("questions", good, needed)
        return f"{short}; {wrong}" if short and wrong else short

    wanted = needed + _SPARE
    messages = load_prompt(_FILES / "prompts" / "global_questions.md.j2").messages(
        description=description,
        persona=person.name,
        interest=person.interest,
        task=task,
        count=wanted,
    )
    return Call("global_questions", item, messages, GlobalQuestions, 300 + 80 * wanted, check)


def _distinct(given: Sequence[P], most: int) -> list[P]:
    """Return the first `most` that differ in more than capitals and punctuation."""
    first: dict[str, P] = {}
    for one in given:
        key = normalised(one if isinstance(one, str) else one.name)
        if key:
            first.setdefault(key, one)
    return list(first.values())[:most]


def _too_few(what: str, given: Sequence[str], needed: int) -> str | None:
    distinct = len({normalised(one) for one in given} - {""})
    return f"{distinct} different {what}, {needed} are wanted" if distinct < needed else None


def _fault(question: str, names: EntityNames) -> str | None:
    """Return why the question is no question on the corpus as a whole, or None."""
    if not normalised(question):
        return "a question is empty"
    if (name := names.first_in(question)) is not None:
        return f"{question!r} names {name!r}: ask without any name"
    if gates.speaks_of_its_source(question):
        return f"{question!r} speaks of its source: ask about the matter itself"
    return None
