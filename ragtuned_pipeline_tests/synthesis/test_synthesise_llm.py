"""Pairs by a teacher: what is asked, what each gate drops, what never reaches tuning."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline.inference.calls import Call, Outcome, T, Teacher
from ragtuned_pipeline.inference.engine import Message, Reply
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis import gates, replies
from ragtuned_pipeline.synthesis.facts import KINDS, TEACHER, normalised
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.synthesis.stand_ins import synthesis_stand_ins
from ragtuned_pipeline.synthesis.synthesise import Synthesis
from ragtuned_pipeline.synthesis.synthesise_llm import synthesise_with_teacher
from ragtuned_pipeline.tables import check_schema, content_hash
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher
from ragtuned_pipeline_tests.scripted.synthesis import SynthesisScript
from ragtuned_pipeline_tests.synthesis.corpora import TINY, World, as_text, harbour, small

GOLDEN = Path(__file__).parent / "qa_pairs_llm_golden.json"
SCHEMAS = (
    replies.LocalQuestion,
    replies.LocalAnswer,
    replies.EntityPair,
    replies.RelationshipPair,
    replies.CommunityPair,
    replies.Grounding,
)

Change = Callable[[dict[str, Any], Call[Any]], "dict[str, Any] | None"]


def scripted(**changes: Change) -> InMemoryTeacher:
    """The scripted teacher; `changes` alter its replies, by the name of their schema."""
    script = SynthesisScript()

    def reply(call: Call[Any]) -> dict[str, Any] | None:
        name = call.schema.__name__
        made = script.reply(name, call.messages)
        return changes[name](made, call) if name in changes else made

    return InMemoryTeacher(reply)


def taught(world: World, teacher: Teacher, base: Base | None = None, **changes: Any) -> Synthesis:
    return synthesise_with_teacher(
        world.documents,
        world.text_units,
        world.entities,
        world.relationships,
        world.communities,
        world.community_reports,
        teacher,
        base,
        SynthesisSettings.model_validate(changes),
        None,
    )


class Base:
    """A base model that answers each question by what `knows` says."""

    def __init__(self, knows: Callable[[str], str]) -> None:
        self._knows = knows
        self.asked: list[str] = []

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        self.asked += [conversation[-1]["content"] for conversation in conversations]
        return [Reply(self._knows(c[-1]["content"]), 1, 1, 0.0) for c in conversations]


def rows_of(made: Synthesis, **wanted: Any) -> list[dict[str, Any]]:
    rows = made.qa_pairs.to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def by_teacher(made: Synthesis, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows_of(made, **wanted) if row["generator"].startswith(TEACHER)]


def steps(teacher: InMemoryTeacher) -> Counter[str]:
    return Counter(call.step for call in teacher.calls)


@cache
def plain() -> tuple[Synthesis, list[Call[Any]]]:
    """The harbour's pairs by the scripted teacher, and the calls that were made for them."""
    teacher = scripted()
    return taught(harbour(), teacher), teacher.calls


@cache
def first_item() -> str:
    """The first local item that makes a pair, and one that nothing else asks for."""
    made, calls = plain()
    dropped = {row["question"] for row in rows_of(made, kept=False)}
    script = SynthesisScript()
    for call in calls:
        if call.step == "local_question":
            reply = script.reply("LocalQuestion", call.messages)
            if not reply["decline"] and reply["question"] not in dropped:
                return call.item_id
    raise AssertionError("no local question of the harbour stands alone")


def evidence(call: Call[Any]) -> str:
    match = re.search(r"<evidence>\n(.*)\n</evidence>", call.messages[-1]["content"], re.DOTALL)
    assert match is not None
    return match[1]


def only(item: str, **fields: Any) -> Change:
    """Change these fields of the reply about one item."""
    return lambda reply, call: reply | fields if call.item_id == item else reply


def told_of(item: str, made: Synthesis) -> list[dict[str, Any]]:
    """The teacher's rows about an item of local questions."""
    _, unit, element = item.split()
    return [
        row
        for row in by_teacher(made, kind="local")
        if unit in row["text_unit_ids"]
        and element in row["relationship_ids"] + row["entity_ids"]
        and (element.startswith("rel") or not row["relationship_ids"])
        and row["split"] != "held_out_fact"
    ]


# ---- the tables ---------------------------------------------------------------------------------


def golden_rows() -> list[dict[str, Any]]:
    """Few wordings, a third of the sentences held out; prompts' versions left out."""
    made = taught(
        small(TINY),
        scripted(),
        train_wordings=1,
        held_out_wordings=1,
        held_out_fact_share=0.3,
        unanswerable_share=0.1,
    )
    rows = made.qa_pairs.to_pylist()
    return [row | {"generator": row["generator"].partition("@")[0]} for row in rows]


def test_the_pairs_are_the_golden_ones() -> None:
    """After a wanted change: python -m ragtuned_pipeline_tests.synthesis.test_synthesise_llm."""
    assert golden_rows() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_tables_have_their_schemas_all_kinds_and_unique_ids() -> None:
    made = plain()[0]
    check_schema("qa_pairs", made.qa_pairs)
    check_schema("queries", made.queries_new_wording)
    check_schema("failures", made.failures)
    for ids in (made.qa_pairs["id"], made.queries_new_wording["id"]):
        assert len(set(ids.to_pylist())) == len(ids)
    assert {row["kind"] for row in rows_of(made, kept=True)} == set(KINDS)
    assert {row["split"] for row in rows_of(made)} == {"train", "held_out_wording", "held_out_fact"}
    generators = {row["generator"].partition("@")[0] for row in rows_of(made, kept=True)}
    assert generators >= {
        *("llm:local", "llm:entity", "llm:relationship", "llm:community"),
        *("template:entity", "template:relationship", "template:passage"),
    }


def test_the_generator_names_the_prompt_and_its_version() -> None:
    for row in by_teacher(taught(small(TINY), scripted())):
        assert re.fullmatch(
            r"llm:(local|entity|relationship|community)@[0-9a-f]{8}", row["generator"]
        )


def test_facts_stand_together_and_kept_and_drop_reason_say_the_same() -> None:
    rows = rows_of(plain()[0])
    facts = [row["fact_id"] for row in rows]
    assert sum(a != b for a, b in pairwise(facts)) == len(set(facts)) - 1
    assert all(row["kept"] == (row["drop_reason"] is None) for row in rows)
    kinds = [KINDS.index(row["kind"]) for row in rows]
    assert kinds == sorted(kinds)


class Backwards:
    """Answers the last call first."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        yield from reversed(list(self._teacher.complete(calls)))


def test_the_order_of_replies_does_not_show_and_a_seed_does() -> None:
    def hashes(teacher: Teacher, seed: int = 17) -> list[str]:
        made = taught(harbour(), teacher, seed=seed)
        return [
            content_hash(each) for each in (made.qa_pairs, made.queries_new_wording, made.failures)
        ]

    # Some fail, so that the order of failures is seen too.
    def some_fail(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any] | None:
        return None if call.item_id.endswith(("1", "2", "3")) else reply

    def teacher() -> InMemoryTeacher:
        return scripted(LocalQuestion=some_fail)

    assert hashes(teacher()) == hashes(Backwards(teacher()))
    assert hashes(teacher()) == hashes(teacher())
    assert hashes(teacher())[0] != hashes(teacher(), seed=18)[0]


def test_tokens_of_the_calls_that_made_the_pairs_add_up() -> None:
    made, calls = plain()
    paid = len(calls) - made.declined  # a decline makes no pair; each call costs 100
    assert sum(made.qa_pairs["prompt_tokens"].to_pylist()) == 100 * paid
    assert sum(made.qa_pairs["completion_tokens"].to_pylist()) > 0


def test_every_link_leads_somewhere() -> None:
    world = harbour()
    known = {
        "document_ids": world.documents,
        "text_unit_ids": world.text_units,
        "entity_ids": world.entities,
        "relationship_ids": world.relationships,
        "community_ids": world.communities,
    }
    for row in by_teacher(plain()[0]):
        assert row["document_ids"]
        assert row["text_unit_ids"]
        for column, table in known.items():
            assert set(row[column]) <= set(table["id"].to_pylist())


# ---- wordings -----------------------------------------------------------------------------------


def test_every_fact_of_the_teacher_is_taught_in_eight_wordings_and_two_are_held_out() -> None:
    facts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in by_teacher(plain()[0], kept=True):
        facts[row["fact_id"]].append(row)
    splits = Counter(
        tuple(sorted(Counter(row["split"] for row in rows).items())) for rows in facts.values()
    )
    assert splits.most_common(1)[0][0] == (("held_out_wording", 2), ("train", 8))
    for rows in facts.values():
        assert len({normalised(row["question"]) for row in rows}) == len(rows)
        assert {row["style"] for row in rows} == {"short", "long"}


def test_a_teacher_with_few_wordings_still_has_some_held_out() -> None:
    def few(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        return reply | {name: reply[name][:3] for name in ("short_wordings", "long_wordings")}

    made = taught(harbour(), scripted(LocalQuestion=few))
    rows = by_teacher(made, kind="local", kept=True)
    splits = Counter(row["split"] for row in rows)
    assert splits["held_out_wording"] > 0
    facts = {row["fact_id"] for row in rows if row["split"] == "held_out_wording"}
    assert splits["held_out_wording"] == 2 * len(facts)


def test_too_few_wordings_are_no_valid_reply() -> None:
    def none(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        return reply | {"short_wordings": reply["short_wordings"][:1]}

    made = taught(harbour(), scripted(LocalQuestion=none))
    reasons = {row["reason"] for row in made.failures.to_pylist()}
    assert any("short_wordings holds 1 different wordings, 4 are wanted" in r for r in reasons)
    assert not by_teacher(made, kind="local", split="train")


def test_no_question_stands_in_two_splits_or_among_the_new_wordings() -> None:
    made = plain()[0]
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows_of(made, kept=True):
        splits[normalised(row["question"])].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    fresh = {normalised(q) for q in made.queries_new_wording["question"].to_pylist()}
    assert fresh
    assert not fresh & splits.keys()


def test_every_answer_holds_what_a_right_answer_must_contain() -> None:
    for row in by_teacher(plain()[0], kept=True):
        assert row["gold"]
        assert normalised(row["gold"]) in normalised(row["answer"])


def test_a_long_answer_without_the_short_one_is_opened_by_it() -> None:
    item = first_item()
    answer = only(item, short_answer="in the old boathouse", long_answer="That is where it was.")
    made = taught(harbour(), scripted(LocalAnswer=answer, Grounding=all_right))
    rows = [row for row in told_of(item, made) if row["style"] == "long"]
    assert rows[0]["answer"] == "In the old boathouse. That is where it was."
    assert rows[0]["gold"] == "in the old boathouse"


def all_right(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
    return reply | {"grounded": True}


# ---- gates --------------------------------------------------------------------------------------


def reasons_about(item: str, **changes: Change) -> tuple[Counter[str | None], Synthesis]:
    """Drop reasons of the item's rows, having checked that all other rows are as without change."""
    before, made = plain()[0], taught(harbour(), scripted(**changes))
    touched = {row["id"] for one in (before, made) for row in told_of(item, one)}
    kept, now = ([r for r in by_teacher(s) if r["id"] not in touched] for s in (before, made))
    assert kept == now
    return Counter(row["drop_reason"] for row in told_of(item, made)), made


def test_gate_schema_a_reply_that_does_not_fit_is_a_failure_of_its_item() -> None:
    item = first_item()
    reasons, made = reasons_about(item, LocalAnswer=only(item, short_answer=7))
    assert not reasons
    (failure,) = made.failures.to_pylist()
    assert (failure["stage"], failure["item_id"]) == ("synthesis", item)
    assert failure["reason"].startswith("local_answer: the reply does not fit the schema")


def test_gate_length_drops_the_rows_whose_answer_is_too_long_and_keeps_the_short_ones() -> None:
    item = first_item()

    def longer(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        more = " ".join([reply["long_answer"]] * 30)[:1500]
        return reply | {"long_answer": more} if call.item_id == item else reply

    reasons, _ = reasons_about(item, LocalAnswer=longer, Grounding=all_right)
    assert reasons == {None: 5, gates.TOO_LONG: 5}


@pytest.mark.parametrize(
    ("gold", "reason"), [("x" * 130, gates.TOO_LONG), ("?!", "answer too short")]
)
def test_gate_length_drops_a_short_answer_that_is_none(gold: str, reason: str) -> None:
    item = first_item()
    answer = only(item, short_answer=gold, long_answer=f"It was {gold}.")
    reasons, _ = reasons_about(item, LocalAnswer=answer, Grounding=all_right)
    assert reasons == {reason: 1}


def test_gate_refusal_an_answer_that_says_there_is_none_is_dropped() -> None:
    item = first_item()
    refused = only(
        item, short_answer="Unable to generate", long_answer="Unable to generate a pair."
    )
    reasons, _ = reasons_about(item, LocalAnswer=refused)
    assert reasons == {gates.REFUSAL: 1}


def test_gate_subject_a_wording_that_names_nobody_is_dropped() -> None:
    item = first_item()

    def nameless(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        asked = ["What did she do there?", *reply["short_wordings"][1:]]
        return reply | {"short_wordings": asked} if call.item_id == item else reply

    reasons, made = reasons_about(item, LocalQuestion=nameless)
    assert reasons == {None: 9, gates.NO_SUBJECT: 1}
    (row,) = rows_of(made, drop_reason=gates.NO_SUBJECT, question="What did she do there?")
    assert not row["kept"]


@pytest.mark.parametrize(
    "question",
    [
        "According to the text, what did Maud Okrent do?",
        "Which boat of Maud Okrent's does this passage mention?",
        "What, as stated in the article, did Maud Okrent buy?",
        "What did Maud Okrent do last week?",
    ],
)
def test_gate_self_contained_a_wording_that_needs_its_source_is_dropped(question: str) -> None:
    item = first_item()

    def sourced(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        asked = [question, *reply["short_wordings"][1:]]
        return reply | {"short_wordings": asked} if call.item_id == item else reply

    reasons, _ = reasons_about(item, LocalQuestion=sourced)
    assert reasons == {None: 9, gates.NOT_SELF_CONTAINED: 1}


def test_gate_self_contained_an_answer_that_speaks_of_its_source_drops_the_pair() -> None:
    item = first_item()
    answer = only(item, long_answer="The passage says that Maud Okrent did it.")
    reasons, _ = reasons_about(item, LocalAnswer=answer, Grounding=all_right)
    assert reasons == {gates.NOT_SELF_CONTAINED: 1}


@pytest.mark.parametrize(
    "text",
    [
        "What is the text of the treaty of Saltwick?",
        "How long was the passage to Saltwick?",
        "Who gave evidence against Aldous Fenn?",
        "Who signed the document in Saltwick?",
        "Who is the author of the Harbour Songs?",
    ],
)
def test_gate_self_contained_lets_through_what_only_sounds_like_a_source(text: str) -> None:
    assert not gates.speaks_of_its_source(text)


def test_gate_given_away_a_wording_that_holds_the_answer_is_dropped() -> None:
    item = first_item()
    call = next(c for c in plain()[1] if (c.step, c.item_id) == ("local_answer", item))
    gold = SynthesisScript().reply("LocalAnswer", call.messages)["short_answer"]

    def telling(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        asked = [f"Is it {gold} for Maud Okrent?", *reply["short_wordings"][1:]]
        return reply | {"short_wordings": asked} if call.item_id == item else reply

    reasons, _ = reasons_about(item, LocalQuestion=telling)
    assert reasons == {None: 9, gates.GIVEN_AWAY: 1}


def asked_calls(step: str, world: World | None = None, **changes: Any) -> list[Call[Any]]:
    teacher = scripted()
    taught(world or harbour(), teacher, **changes)
    return [call for call in teacher.calls if call.step == step]


TWICE = {
    "a.txt": "Maud Okrent sold the Blue Marten to Aldous Fenn in May 2041. Saltwick is a port.",
    "b.txt": "Petra Lindqvar met Maud Okrent in Saltwick. Petra Lindqvar owns a boat.",
}


def same_question(question: str, other: str, gold: str, other_gold: str) -> InMemoryTeacher:
    """Both of two documents' local questions are `question`, or the second one's `other`."""
    units = small(TWICE).text_units["id"].to_pylist()

    def is_first(call: Call[Any]) -> bool:
        return units[0] in call.item_id

    def ask(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        asked = question if is_first(call) else other
        marks = [f"{asked} ({call.item_id[-4:]}-{n})" for n in range(9)]
        return {
            "thought": "",
            "decline": not call.item_id.split()[2].startswith("ent"),
            "question": asked,
            "short_wordings": marks[:4],
            "long_wordings": marks[4:],
        }

    def answer(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        short = gold if is_first(call) else other_gold
        long = f"It was {short}."
        return {"thought": "", "decline": False, "short_answer": short, "long_answer": long}

    return scripted(LocalQuestion=ask, LocalAnswer=answer, Grounding=all_right)


def local_reasons(teacher: InMemoryTeacher) -> Counter[str | None]:
    made = taught(small(TWICE), teacher, held_out_fact_share=0.0)
    return Counter(
        {r["fact_id"]: r["drop_reason"] for r in by_teacher(made, kind="local")[::-1]}.values()
    )


def test_gate_duplicates_of_equal_questions_with_one_answer_one_fact_is_kept() -> None:
    asked = "Who met Maud Okrent in Saltwick?"
    reasons = local_reasons(same_question(asked, asked, "a boatman", "the boatman"))
    assert reasons[None] == 1
    assert set(reasons) == {None, gates.EXACT_DUPLICATE}


def test_gate_duplicates_of_nearly_equal_questions_with_one_answer_one_fact_is_kept() -> None:
    asked = ("Who met Maud Okrent in Saltwick?", "In Saltwick, who met Maud Okrent?")
    reasons = local_reasons(same_question(*asked, "a boatman", "a boatman"))
    assert reasons[None] == 1
    assert set(reasons) == {None, gates.EXACT_DUPLICATE, gates.NEAR_DUPLICATE}


def test_gate_duplicates_keeps_like_questions_with_different_answers() -> None:
    asked = ("Who met Maud Okrent in 2041?", "Who met Maud Okrent in 2014?")
    reasons = local_reasons(same_question(*asked, "a boatman", "a fisherman"))
    assert reasons[None] == 2
    assert gates.NEAR_DUPLICATE not in reasons


def test_gate_grounded_what_the_judge_finds_unsupported_is_dropped() -> None:
    item = first_item()
    answer = only(item, long_answer="It happened in Zanzibar, as everybody knew.")
    reasons, _ = reasons_about(item, LocalAnswer=answer)  # the script's judge reads the evidence
    assert reasons == {gates.NOT_GROUNDED: 1}


def test_gate_grounded_holds_for_global_pairs_too() -> None:
    def invented(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        return reply | {"long_answer": reply["long_answer"] + " Then all moved to Zanzibar."}

    made = taught(harbour(), scripted(EntityPair=invented))
    assert {r["drop_reason"] for r in by_teacher(made, kind="global_entity")} == {
        gates.NOT_GROUNDED
    }


def test_gate_judge_an_answer_beside_the_point_is_dropped() -> None:
    item = first_item()
    reasons, _ = reasons_about(item, Grounding=only(item, answers_question=False))
    assert reasons == {gates.BESIDE_THE_POINT: 1}


def test_gate_judge_a_wording_that_asks_something_else_is_dropped() -> None:
    item = first_item()
    reasons, _ = reasons_about(item, Grounding=only(item, faulty_wordings=[2, 10, 99]))
    assert reasons == {None: 8, gates.OTHER_QUESTION: 2}


def test_the_judge_sees_the_evidence_that_the_pair_was_made_from() -> None:
    """peers.md 8: the judges of synthetic-data-kit and Second-Me never see the source text."""
    made_from = {call.item_id: evidence(call) for call in plain()[1] if call.step != "judge"}
    judged = [call for call in plain()[1] if call.step == "judge"]
    assert judged
    assert all(evidence(call) == made_from[call.item_id] for call in judged)


def test_gate_known_what_the_base_answers_rightly_is_dropped_but_for_a_share() -> None:
    golds = {r["question"]: r["gold"] for r in by_teacher(plain()[0], wording=0)}
    half = {q for n, q in enumerate(sorted(golds)) if n % 2}

    def dropped(share: float) -> tuple[set[str], set[str]]:
        base = Base(lambda q: f"It is {golds.get(q, 'this')}, of course." if q in half else "No.")
        made = taught(harbour(), scripted(), base, known_share=share)
        return {r["question"] for r in rows_of(made, drop_reason=gates.KNOWN)}, set(base.asked)

    every, asked = dropped(0.0)
    assert every
    assert every == half & asked
    some, _ = dropped(0.5)
    assert some < every
    assert dropped(0.5)[0] == some
    assert not dropped(1.0)[0]


def test_gate_known_is_skipped_without_a_base_and_never_asks_held_out_facts() -> None:
    base = Base(lambda q: "No.")
    made = taught(harbour(), scripted(), base)
    held_out = {row["question"] for row in by_teacher(made, split="held_out_fact")}
    assert held_out
    assert not held_out & set(base.asked)
    assert not rows_of(plain()[0], drop_reason=gates.KNOWN)


def test_nothing_more_is_paid_for_a_pair_that_was_dropped() -> None:
    item = first_item()

    def nameless(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        asked = {
            "question": "What did she do?",
            "short_wordings": [f"What did she do in {n}?" for n in range(4)],
            "long_wordings": [f"Explain what she did in {n}." for n in range(5)],
        }
        return reply | asked if call.item_id == item else reply

    teacher = scripted(LocalQuestion=nameless)
    made = taught(harbour(), teacher)
    assert {call.step for call in teacher.calls if call.item_id == item} == {"local_question"}
    assert [row["drop_reason"] for row in told_of(item, made)] == [gates.NO_SUBJECT]
    refused = only(item, short_answer="Not stated", long_answer="Not stated.")
    teacher = scripted(LocalAnswer=refused)
    taught(harbour(), teacher)
    assert (item, "judge") not in {(call.item_id, call.step) for call in teacher.calls}


# ---- what never reaches tuning ------------------------------------------------------------------


def test_declined_questions_never_become_rows() -> None:
    """method.md: in the authors' code refusals ("Unable to generate") become training rows."""

    def decline(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
        return reply | {"decline": True}

    declining = {s.__name__: decline for s in SCHEMAS if s is not replies.Grounding}
    teacher = scripted(**declining)
    made = taught(harbour(), teacher)
    assert not by_teacher(made)
    assert not made.failures.num_rows
    assert made.declined == len(teacher.calls) > 0
    assert "judge" not in steps(teacher)
    answers = scripted(LocalAnswer=decline)
    made = taught(harbour(), answers)
    assert not by_teacher(made, kind="local", kept=True)
    assert all(row["answer"] == "" for row in by_teacher(made, kind="local"))
    assert made.declined >= steps(answers)["local_answer"] > 0


def test_no_entity_type_is_left_out() -> None:
    """method.md: the authors drop two of six entity types and keep one that is never indexed."""
    world = harbour()
    types = dict(
        zip(world.entities["id"].to_pylist(), world.entities["type"].to_pylist(), strict=True)
    )
    made = by_teacher(plain()[0], kind="global_entity", kept=True)
    assert {types[row["entity_ids"][0]] for row in made} == set(types.values())


def test_a_hub_entity_is_asked_about_from_all_that_names_it() -> None:
    """method.md: the authors cut hub entities to their first 30 chunks."""
    sentences = [
        f"Ondra Vale carried the sealed letter number {n} to Port {word} in the year {1500 + n}."
        for n, word in enumerate(["Harrow", "Sabel", "Lantry"] * 90)
    ]
    world = small({f"{n}.txt": " ".join(sentences[n : n + 9]) for n in range(0, 270, 9)})
    teacher = scripted()
    made = taught(world, teacher, held_out_fact_share=0.0)
    title = {row["id"]: row["title"] for row in world.entities.to_pylist()}
    hub = next(key for key, name in title.items() if name == "Ondra Vale")
    asked = [evidence(c) for c in teacher.calls if c.item_id.startswith(f"global_entity {hub}")]
    assert len(asked) > 1
    assert max(map(len, asked)) < 13_000
    assert all(any(sentence in part for part in asked) for sentence in sentences)
    linked = [r for r in by_teacher(made, kind="global_entity") if r["entity_ids"] == [hub]]
    assert {d for row in linked for d in row["document_ids"]} == set(
        world.documents["id"].to_pylist()
    )
    assert all(len(row["document_ids"]) < 30 for row in linked)  # each part links to its own


def test_a_sentence_that_tells_of_an_entity_by_a_pronoun_is_evidence_too() -> None:
    world = small(["Petra Lindqvar runs the yard in Saltwick. She hired Maud Okrent in May 2041."])
    (petra,) = (row["id"] for row in world.entities.to_pylist() if row["title"] == "Petra Lindqvar")
    calls = asked_calls("entity_pair", world, held_out_fact_share=0.0)
    (call,) = (call for call in calls if petra in call.item_id)
    assert "She hired Maud Okrent in May 2041." in evidence(call)


def test_both_directions_of_every_relationship_are_asked_and_name_both_ends() -> None:
    world, (made, calls) = harbour(), plain()
    sides: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        if call.step == "relationship_pair":
            _, relationship, direction, *_ = call.item_id.split()
            sides[relationship].add(direction)
    assert sides
    assert all(directions == {"forward", "backward"} for directions in sides.values())
    title = {row["id"]: row["title"] for row in world.entities.to_pylist()}
    opened: dict[frozenset[str], set[str]] = defaultdict(set)
    for row in by_teacher(made, kind="global_relationship", kept=True):
        ends = [title[entity] for entity in row["entity_ids"]]
        assert all(end in row["question"] for end in ends)
        opened[frozenset(ends)].add(min(ends, key=row["question"].index))
    assert any(len(openings) == 2 for openings in opened.values())


def restated(world: World, sentence: str, title: str) -> World:
    """The description of `title` is written by a model that tells `sentence` in its own words."""
    rows = world.entities.to_pylist()
    for row in rows:
        if row["title"] == title:
            row["description"] = f"{title} is known in the harbour. {sentence}"
    return World(
        world.documents,
        world.text_units,
        pa.Table.from_pylist(rows, schema=world.entities.schema),
        *(world.relationships, world.communities, world.community_reports),
    )


@pytest.mark.parametrize("seed", range(3))
def test_held_out_sentences_are_in_no_prompt_and_no_answer_for_tuning(seed: int) -> None:
    teacher = scripted()
    made = taught(harbour(), teacher, seed=seed, held_out_fact_share=0.3)
    held_out = {
        normalised(evidence(call).partition(": ")[2])
        for call in teacher.calls
        if call.step == "local_question" and "held out" in call.item_id
    }
    assert held_out
    shown = [normalised(evidence(c)) for c in teacher.calls if "held out" not in c.item_id]
    answers = [normalised(row["answer"]) for row in rows_of(made) if row["split"] == "train"]
    for sentence in held_out:
        assert not any(f" {sentence} " in f" {text} " for text in [*shown, *answers])


def test_a_description_that_restates_a_held_out_sentence_is_not_taught() -> None:
    world = small(TINY)
    seed = next(
        seed
        for seed in range(200)
        if any(
            "hired Maud Okrent" in evidence(call)
            for call in asked_calls("local_question", world, seed=seed, held_out_fact_share=0.3)
            if "held out" in call.item_id
        )
    )
    leak = "In February 2041, on the 4 February, Maud Okrent was hired by Petra Lindqvar."
    teacher = scripted()
    made = taught(restated(world, leak, "Maud Okrent"), teacher, seed=seed, held_out_fact_share=0.3)
    texts = [message["content"] for c in teacher.calls for message in c.messages]
    texts += [row["answer"] for row in rows_of(made) if row["split"] == "train"]
    assert any("known in the harbour" in text for text in texts)
    assert not any("was hired by" in text for text in texts)


def test_held_out_facts_are_asked_in_evaluation_only() -> None:
    made = taught(harbour(), scripted(), held_out_fact_share=0.3)
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows_of(made, kept=True):
        splits[row["fact_id"]].add(row["split"])
    held_out = [found for found in splits.values() if "held_out_fact" in found]
    assert held_out
    assert all(found == {"held_out_fact"} for found in held_out)


def test_refusals_are_asked_in_the_teachers_wordings() -> None:
    made = taught(harbour(), scripted(), unanswerable_share=0.2)
    forms = {row["form"] for row in rows_of(made, kind="unanswerable", kept=True)}
    assert any(form.startswith("teacher-") for form in forms)
    answers = {
        row["answer"].partition(":")[0].partition(".")[0]
        for row in rows_of(made, kind="unanswerable")
    }
    assert all(answer.startswith("I do not know") for answer in answers)
    assert not sum(row["prompt_tokens"] for row in rows_of(made, kind="unanswerable"))


def test_template_pairs_and_passages_are_kept_beside_the_teachers() -> None:
    made = taught(harbour(), scripted(), rows_per_document=10_000)
    offline = harbour().synthesise()
    for generator in ("template:entity@1", "template:relationship@1", "template:community@1"):
        facts = {r["fact_id"] for r in rows_of(made, generator=generator, kept=True)}
        assert facts == {r["fact_id"] for r in rows_of(offline, generator=generator, kept=True)}
    shown = Counter(row["fact_id"] for row in rows_of(made, generator=PASSAGE_GENERATOR))
    assert shown
    assert set(shown.values()) == {1}  # rows.py trains one wording of a passage


def test_every_item_is_in_a_table_or_a_failure_and_none_in_both() -> None:
    def fails(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any] | None:
        return None if int(call.item_id[-1], 16) % 3 == 0 else reply

    def some(reply: dict[str, Any], call: Call[Any]) -> dict[str, Any] | None:
        return fails(reply, call) if call.item_id[-1] in "0123456789abcdef" else reply

    teacher = scripted(LocalQuestion=some, LocalAnswer=some, EntityPair=some, Grounding=some)
    made = taught(harbour(), teacher)
    failed = [row["item_id"] for row in made.failures.to_pylist()]
    assert failed
    assert len(set(failed)) == len(failed)
    asked = {call.item_id for call in teacher.calls}
    facts = {row["fact_id"] for row in by_teacher(made)}
    assert len(asked) == len(failed) + made.declined + len(facts)


# ---- row limits ---------------------------------------------------------------------------------


def many_units() -> World:
    people = ["Anna Berg", "Carl Dorn", "Edda Falk", "Gero Hahn", "Ines Jung", "Kurt Lang"]
    texts = {}
    for number in range(4):
        told = [
            f"{people[(number + n) % 6]} sold the house number {17 * number + n} to "
            f"{people[(number + n + 1) % 6]} in {1900 + 31 * number + n}."
            for n in range(24)
        ]
        texts[f"{number}.txt"] = " ".join(told)
    return small(texts)


@pytest.mark.parametrize("limit", [5, 60, 200])
def test_a_document_gets_no_more_rows_than_the_setting(limit: int) -> None:
    only_one = small({"a.txt": next(iter(many_units().documents["text"].to_pylist()))})
    made = taught(only_one, scripted(), rows_per_document=limit)
    rows = [r for r in rows_of(made, split="train", kept=True) if r["kind"] != "unanswerable"]
    assert 0 < len(rows) <= limit


@pytest.mark.parametrize("limit", [7, 100, 400])
def test_the_corpus_gets_no_more_rows_than_the_setting_and_no_calls_beyond_it(limit: int) -> None:
    teacher = scripted()
    made = taught(many_units(), teacher, max_rows=limit)
    assert 0 < len(rows_of(made, split="train", kept=True)) <= limit
    asked = {call.item_id for call in teacher.calls if "held out" not in call.item_id}
    assert len(asked) * min(8, limit) <= limit
    left_out = rows_of(made, drop_reason=gates.ROW_LIMIT)
    assert left_out
    assert not by_teacher(made, drop_reason=gates.ROW_LIMIT)  # what is not asked costs nothing


def test_every_unit_is_asked_about_before_any_is_asked_twice_and_documents_take_turns() -> None:
    world = many_units()
    documents = dict(
        zip(
            world.text_units["id"].to_pylist(),
            world.text_units["document_id"].to_pylist(),
            strict=True,
        )
    )
    for limit in (120, 300, 600):
        calls = asked_calls("local_question", world, max_rows=limit, held_out_fact_share=0.0)
        units = Counter(call.item_id.split()[1] for call in calls)
        asked = Counter(documents[unit] for unit in units.elements())
        assert max(asked.values()) - min(asked.get(d, 0) for d in documents.values()) <= 1 + (
            max(units.values()) > 1
        )
        if max(units.values()) > 1:
            assert len(units) == world.text_units.num_rows


def test_a_unit_is_not_asked_about_what_only_its_neighbour_tells() -> None:
    world = many_units()
    texts = dict(
        zip(world.text_units["id"].to_pylist(), world.text_units["text"].to_pylist(), strict=True)
    )
    title = {row["id"]: row["title"] for row in world.entities.to_pylist()}
    for call in asked_calls("local_question", world, held_out_fact_share=0.0):
        _, unit, element = call.item_id.split()
        if element in title:
            assert title[element] in texts[unit]


# ---- prompts, stand-ins and the script ----------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_prompt_names_every_key_of_its_reply(schema: type[Any]) -> None:
    (call, *_) = [c for c in plain()[1] if c.schema is schema]
    told = call.messages[0]["content"]
    for key in schema.model_fields:
        assert re.search(rf'[-"] ?"?{key}"?:', told), key


def test_the_items_of_a_step_are_unique() -> None:
    seen = Counter((call.step, call.item_id) for call in plain()[1])
    assert set(seen.values()) == {1}


def test_stand_ins_exist_for_every_schema_fit_it_and_pass_every_gate() -> None:
    stand_ins = synthesis_stand_ins()
    assert set(stand_ins) == set(SCHEMAS)
    teacher = InMemoryTeacher(lambda call: stand_ins[call.schema](call).model_dump())
    made = taught(harbour(), teacher)
    assert not made.failures.num_rows
    assert {row["drop_reason"] for row in by_teacher(made)} == {None}
    assert 0 < made.declined < steps(teacher)["local_question"] / 4


def test_a_plan_by_stand_ins_is_near_what_the_scripted_teacher_is_asked() -> None:
    stand_ins = synthesis_stand_ins()
    planned = InMemoryTeacher(lambda call: stand_ins[call.schema](call).model_dump())
    taught(harbour(), planned)
    assert len(planned.calls) == pytest.approx(len(plain()[1]), rel=0.15)


def test_the_script_declines_where_no_sentence_speaks_of_the_subject() -> None:
    call = next(c for c in plain()[1] if c.step == "local_question")
    asked = re.sub(r"Subject: .*", "Subject: Nobody Here", call.messages[-1]["content"])
    reply = SynthesisScript().reply("LocalQuestion", [call.messages[0], {"content": asked}])
    assert reply["decline"]


if __name__ == "__main__":  # python -m ragtuned_pipeline_tests.synthesis.test_synthesise_llm
    GOLDEN.write_text(as_text(golden_rows()), encoding="utf-8")
