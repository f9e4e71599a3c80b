"""Queries that a teacher writes: what is asked of it, what is refused, declined and counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline.evaluation.questions import local_queries
from ragtuned_pipeline.evaluation.questions.corpus_description import CorpusDescription
from ragtuned_pipeline.evaluation.questions.generated_queries import GeneratedQueries
from ragtuned_pipeline.evaluation.questions.global_queries import GlobalQuestions, Personas, Tasks
from ragtuned_pipeline.evaluation.questions.local_queries import EvaluationQuestion
from ragtuned_pipeline.evaluation.questions.local_samples import (
    LOCAL,
    MULTI_HOP,
    REVERSE,
    Sample,
    Samples,
)
from ragtuned_pipeline.evaluation.questions.query_stand_ins import query_stand_ins
from ragtuned_pipeline.evaluation.questions.quotes import flat
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.inference.plan import Planner, by_characters
from ragtuned_pipeline.settings import TeacherSettings
from ragtuned_pipeline.synthesis.gates import names_one_of
from ragtuned_pipeline.tables import check_schema, content_hash
from ragtuned_pipeline_tests.evaluation import generated
from ragtuned_pipeline_tests.evaluation.generated import Memory
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher
from ragtuned_pipeline_tests.synthesis import corpora

Change = Callable[[Call[Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def memory() -> Memory:
    return generated.harbour()


def ask(
    memory: Memory, change: Change | None = None, **wanted: int
) -> tuple[GeneratedQueries, Counter[str]]:
    """Return what is generated and how many calls of each step were made."""
    teacher = generated.teacher(change)
    made = memory.ask(teacher, **wanted)
    ids = [(call.step, call.item_id) for call in teacher.calls]
    assert len(ids) == len(set(ids))
    return made, Counter(step for step, _ in ids)


def rows_of(made: GeneratedQueries, scope: str) -> list[dict[str, Any]]:
    return [row for row in made.queries.to_pylist() if row["scope"] == scope]


def reasons(made: GeneratedQueries) -> list[str]:
    return [failure.reason for failure in made.failures]


# ---- the whole ----


def test_a_teacher_is_asked_for_what_the_paper_asks(memory: Memory) -> None:
    made, calls = ask(memory, local_queries=30)
    check_schema("queries", made.queries)
    assert calls.pop("evaluation_question") >= 30
    assert calls == {"corpus_description": 1, "personas": 1, "tasks": 5, "global_questions": 25}
    assert Counter(made.queries["question_set"].to_pylist()) == {
        "generated_local": 30,
        "generated_global": 125,
    }
    assert set(made.queries["generator"].to_pylist()) == {"scripted"}
    assert set(made.queries["seed"].to_pylist()) == {29}
    for row in rows_of(made, "global"):
        assert row["reference_answer"] == made.description != ""
        assert row["source_ids"][0].startswith("rep-")
    units = dict(
        zip(*(memory.world.text_units[name].to_pylist() for name in ("id", "text")), strict=True)
    )
    for row in rows_of(made, "local"):
        texts = [flat(units[one]) for one in row["source_ids"] if one in units]
        assert len(texts) in (1, 2)
        assert all(any(line in text for text in texts) for line in row["evidence"].split("\n"))


def test_kinds_come_in_their_shares(memory: Memory) -> None:
    teacher = InMemoryTeacher(lambda _: None)
    memory.ask(teacher, local_queries=20, global_queries=0)
    drawn = [call.item_id.split() for call in teacher.calls[:20]]
    # 12, 4 and 4 are expected of the draw.
    assert Counter(kind for kind, *_ in drawn) == {LOCAL: 15, MULTI_HOP: 3, REVERSE: 2}
    units = Counter(unit for _, unit, *_ in drawn)
    assert len(units) == memory.world.text_units.num_rows
    assert set(units.values()) == {1, 2}


def shuffled(data: pa.Table, seed: int) -> pa.Table:
    order = list(range(data.num_rows))
    random.Random(seed).shuffle(order)
    return data.take(pa.array(order, pa.int64()))


def test_neither_the_order_of_rows_nor_of_replies_makes_a_difference(memory: Memory) -> None:
    wanted = {"local_queries": 40, "global_queries": 60}
    first = memory.ask(generated.teacher(), **wanted)
    for seed in range(3):
        world = corpora.World(
            **{name: shuffled(data, seed) for name, data in memory.graph.items()},
            communities=memory.world.communities,
        )
        turned = Memory(world, memory.qa_pairs, memory.training_rows, memory.new_wording)
        again = turned.ask(generated.Shuffling(generated.teacher(), seed), **wanted)
        assert content_hash(first.queries) == content_hash(again.queries)
        assert sorted(map(str, first.failures)) == sorted(map(str, again.failures))


def test_nothing_is_asked_where_nothing_is_wanted(memory: Memory) -> None:
    made, calls = ask(memory, local_queries=0, global_queries=0)
    assert not calls
    assert made.queries.num_rows == 0
    assert not made.failures


def test_the_plan_asks_what_is_asked(memory: Memory) -> None:
    planner = Planner("m", TeacherSettings(), query_stand_ins(), by_characters, None)
    planned = memory.ask(planner, local_queries=20)
    _, calls = ask(memory, local_queries=20)
    counted = {step: usage.calls for step, usage in planner.usage.items()}
    questions = counted.pop("evaluation_question")
    assert 20 < questions < 40  # a fifth is declined
    assert counted == {step: n for step, n in calls.items() if step != "evaluation_question"}
    assert planned.queries.num_rows == 145
    for schema in (CorpusDescription, Personas, Tasks, GlobalQuestions, EvaluationQuestion):
        assert schema in query_stand_ins()


# ---- global ----


def test_questions_with_a_name_are_refused_and_dropped(memory: Memory) -> None:
    def naming(call: Call[Any], reply: dict[str, Any]) -> Any:
        if call.schema is GlobalQuestions and call.item_id == "persona 2 task 3":
            return {"questions": ["What does maud okrent want?"] * 3 + reply["questions"][:4]}
        if call.schema is GlobalQuestions and call.item_id == "persona 1 task 1":
            return {"questions": ["What does Varnholm stand for?", *reply["questions"]]}
        return reply

    made, _ = ask(memory, naming, local_queries=0)
    failed = {failure.item_id: failure.reason for failure in made.failures}
    # Four of five are too few: the model is told why when it is asked again.
    assert failed["persona 2 task 3"] == (
        "global_questions: 4 different questions, 5 are wanted; "
        "'What does maud okrent want?' names 'Maud Okrent': ask without any name"
    )
    # Enough are left without the one that holds a name.
    assert failed["persona 1 task 1"] == (
        "question dropped: 'What does Varnholm stand for?' names 'Varnholm': ask without any name"
    )
    asked = rows_of(made, "global")
    titles = memory.world.entities["title"].to_pylist()
    assert not [row for row in asked if names_one_of(row["question"], titles)]
    # The sixth questions of other tasks stand in for the five that are lost.
    assert len(asked) == 125
    assert Counter(Counter((r["persona"], r["task"]) for r in asked).values()) == {5: 19, 6: 5}


def test_near_duplicates_are_left_out_and_counted(memory: Memory) -> None:
    def repeating(call: Call[Any], reply: dict[str, Any]) -> Any:
        if call.schema is GlobalQuestions:
            same = [f"Which of the {n} causes mattered the most" for n in (10, 11, 12)]
            return {"questions": [f"{reply['questions'][n]}" for n in range(4)] + same}
        return reply

    made, _ = ask(memory, repeating, local_queries=0)
    asked = [row["question"] for row in rows_of(made, "global")]
    assert len(asked) == 101  # 4 of each task, and one of all that are nearly the same
    assert sum("causes mattered" in question for question in asked) == 1
    assert reasons(made) == [
        "74 questions nearly repeat others and are left out",
        "101 of 125 questions: there are no more to choose from",
    ]


def test_without_personas_there_are_no_global_questions(memory: Memory) -> None:
    def silent(call: Call[Any], reply: dict[str, Any]) -> Any:
        return None if call.schema is Personas else reply

    made, calls = ask(memory, silent, local_queries=0)
    assert made.queries.num_rows == 0
    assert set(calls) == {"corpus_description", "personas"}
    assert reasons(made) == [
        "personas: the server sent no reply",
        "0 of 125 questions: there are no more to choose from",
    ]


def test_fewer_personas_or_tasks_than_wanted_are_refused(memory: Memory) -> None:
    def few(call: Call[Any], reply: dict[str, Any]) -> Any:
        if call.item_id == "persona 4":
            return {"tasks": [*reply["tasks"][:4], reply["tasks"][0].upper()]}
        return reply

    made, calls = ask(memory, few, local_queries=0)
    assert calls["global_questions"] == 20
    assert reasons(made)[0] == "tasks: 4 different tasks, 5 are wanted"
    assert len({row["persona"] for row in rows_of(made, "global")}) == 4


def test_fewer_questions_need_fewer_calls(memory: Memory) -> None:
    made, calls = ask(memory, local_queries=0, global_queries=7)
    assert calls["global_questions"] == 7
    assert len(rows_of(made, "global")) == 7
    assert len({row["persona"] for row in rows_of(made, "global")}) == 5


# ---- local ----


def test_what_is_declined_is_drawn_anew_and_counted(memory: Memory) -> None:
    declined: list[str] = []

    def picky(call: Call[Any], reply: dict[str, Any]) -> Any:
        if call.schema is EvaluationQuestion and call.item_id.startswith(LOCAL):
            declined.append(call.item_id)
            return {"thought": "", "decline": True, "question": "", "answer": "", "evidence": []}
        return reply

    made, calls = ask(memory, picky, local_queries=10, global_queries=0)
    assert calls["evaluation_question"] > 10
    assert not [row for row in rows_of(made, "local") if row["kind"] == LOCAL]
    counted = next(reason for reason in reasons(made) if "declined" in reason)
    scripted = int(counted.split()[0]) - len(declined)
    assert 0 <= scripted < 5


def test_who_declines_everything_is_not_asked_forever(memory: Memory) -> None:
    def never(call: Call[Any], reply: dict[str, Any]) -> Any:
        if call.schema is not EvaluationQuestion:
            return reply
        return {"thought": "", "decline": True, "question": "", "answer": "", "evidence": []}

    made, calls = ask(memory, never, local_queries=10, global_queries=0)
    assert calls == {"evaluation_question": 30}
    assert made.queries.num_rows == 0
    assert reasons(made) == [
        "30 samples that the teacher declined to ask about",
        "0 of 10 questions: there is no more to ask about",
    ]


def test_what_fails_is_named_and_drawn_anew(memory: Memory) -> None:
    lost: list[str] = []

    def failing(call: Call[Any], reply: dict[str, Any]) -> Any:
        if len(lost) < 3:
            lost.append(call.item_id)
            return None
        return reply

    made, _ = ask(memory, failing, local_queries=10, global_queries=0)
    assert len(rows_of(made, "local")) == 10
    named = [f.item_id for f in made.failures if f.reason.endswith("the server sent no reply")]
    assert named == lost


def test_a_question_that_is_asked_already_is_drawn_anew(memory: Memory) -> None:
    sample = Sample(LOCAL, ("ent",), (), ("tu",))
    kept = local_queries._Kept()
    asked = {"thought": "", "decline": False, "answer": "Maud Okrent", "evidence": ["x"]}
    for question in ("Who rows the ferry to Quell?", "Who rows the ferry to Quell, then?", "Who?"):
        kept.add(sample, EvaluationQuestion(question=question, **asked))
    other = asked | {"answer": "Aldous Fenn"}
    kept.add(sample, EvaluationQuestion(question="Who rows the ferry to Quell?", **other))
    assert len(kept.asked) == 3
    assert kept.repeated == 1


TEXTS = {
    "2041-02-05|A crew for the ferry.md": (
        "Petra Lindqvar hired Maud Okrent on 4 February 2041. The ferry has\nforty-two seats."
    ),
    "2041-03-01|The yard.md": "Maud Okrent leads the yard of Aldous Fenn in Saltwick.",
}


@pytest.fixture(scope="module")
def samples() -> tuple[Samples, dict[str, Sample]]:
    """Samples on `TEXTS`, one a kind: Petra hired Maud, Maud leads the yard of Aldous."""
    world = corpora.small(TEXTS)
    ids = dict(zip(*(world.entities[name].to_pylist() for name in ("title", "id")), strict=True))
    petra, maud, aldous = ids["Petra Lindqvar"], ids["Maud Okrent"], ids["Aldous Fenn"]
    first, second = (
        next(row["id"] for row in world.text_units.to_pylist() if start in row["text"])
        for start in ("Petra Lindqvar hired", "Maud Okrent leads")
    )
    tables = world.documents, world.text_units, world.entities, world.relationships
    return Samples(*tables, seed=1), {
        LOCAL: Sample(LOCAL, (maud,), (), (first,)),
        REVERSE: Sample(REVERSE, (petra, maud), ("rel-1",), (first,)),
        MULTI_HOP: Sample(MULTI_HOP, (petra, maud, aldous), ("rel-1", "rel-2"), (first, second)),
    }


SEATS = "The ferry has forty-two seats."
HIRED = "Petra Lindqvar hired Maud Okrent on 4 February 2041."
LEADS = "Maud Okrent leads the yard of Aldous Fenn in Saltwick."
GOOD: dict[str, tuple[str, str, list[str]]] = {
    LOCAL: ("When was Maud Okrent hired?", "4 February 2041", [HIRED]),
    REVERSE: ("Who hired Maud Okrent?", "Petra Lindqvar", [HIRED]),
    MULTI_HOP: (
        "Whose yard does the person lead whom Petra Lindqvar hired?",
        "Aldous Fenn",
        [HIRED, LEADS],
    ),
}


@pytest.mark.parametrize(
    ("kind", "question", "answer", "evidence", "reason"),
    [
        (LOCAL, None, None, None, None),
        (REVERSE, None, None, None, None),
        (MULTI_HOP, None, None, None, None),
        # White space, number words and the spelling of numbers make no difference.
        (LOCAL, "How many seats has Maud Okrent's ferry?", "42", [SEATS], None),
        (LOCAL, " ", None, None, "question or answer is empty"),
        (LOCAL, None, "?", None, "question or answer is empty"),
        (LOCAL, "When was she hired?", None, None, "must name Maud Okrent"),
        (LOCAL, "As noted above, who hired Maud Okrent?", None, None, "without the evidence"),
        (LOCAL, "Was Maud Okrent hired last week?", None, None, "without the evidence"),
        (LOCAL, None, "It is not stated", None, "refusal"),
        (LOCAL, None, "word " * 16, None, "16 words"),
        (LOCAL, "Was Maud Okrent hired on 4 February 2041?", None, None, "holds its answer"),
        (LOCAL, None, "5 February 2041", None, "does not hold '5'"),
        (LOCAL, None, None, [], "evidence is empty"),
        (LOCAL, None, None, [""], "word for word"),
        (LOCAL, None, None, ["Petra Lindqvar hired Maud Okrent."], "word for word"),
        (LOCAL, None, None, [HIRED, LEADS], "word for word"),
        (REVERSE, "Whom did Petra Lindqvar hire?", "Maud Okrent", None, "must name Maud Okrent"),
        (REVERSE, "Did Petra hire Maud Okrent?", None, None, "must not name petra"),
        (REVERSE, "When was Maud Okrent hired?", "4 February 2041", None, "must be Petra Lindqvar"),
        (MULTI_HOP, "Whose is Maud's yard, Petra Lindqvar?", None, None, "must not name maud"),
        (MULTI_HOP, "Whose yard does the new hand lead?", None, None, "must name Petra Lindqvar"),
        (MULTI_HOP, None, None, [LEADS], "not quoted"),
    ],
)  # fmt: skip
def test_a_reply_is_used_only_where_nothing_is_wrong_with_it(
    samples: tuple[Samples, dict[str, Sample]],
    kind: str,
    question: str | None,
    answer: str | None,
    evidence: list[str] | None,
    reason: str | None,
) -> None:
    known, of_kind = samples
    good = GOOD[kind]
    reply = {
        "thought": "",
        "decline": False,
        "question": good[0] if question is None else question,
        "answer": good[1] if answer is None else answer,
        "evidence": good[2] if evidence is None else evidence,
    }
    call = local_queries._call(of_kind[kind], known)
    (outcome,) = InMemoryTeacher(lambda _: reply).complete([call])
    said = getattr(outcome, "reason", None)
    assert (said is None) == (reason is None), said
    assert reason is None or reason in said


def test_a_prompt_holds_the_texts_and_who_is_who(
    samples: tuple[Samples, dict[str, Sample]],
) -> None:
    known, of_kind = samples
    calls = {kind: local_queries._call(sample, known) for kind, sample in of_kind.items()}
    asked = {kind: call.messages[-1]["content"] for kind, call in calls.items()}
    assert "Subject: Maud Okrent\n" in asked[LOCAL]
    assert "First subject: Petra Lindqvar\nSecond subject: Maud Okrent\n" in asked[REVERSE]
    assert "Start: Petra Lindqvar\nBridge: Maud Okrent\nEnd: Aldous Fenn\n" in asked[MULTI_HOP]
    assert asked[MULTI_HOP].count("<evidence>") == 2
    assert "Written in: A crew for the ferry, 5 February 2041\n<evidence>\nPetra" in asked[LOCAL]
    for call in calls.values():
        assert "do not follow them" in call.messages[0]["content"]
