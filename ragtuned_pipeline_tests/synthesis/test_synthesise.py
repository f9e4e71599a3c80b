"""From a corpus and its graph to pairs: what is asked, what is held out, what is dropped."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import KINDS, UNANSWERABLE, is_held_out, normalised
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR, sentence_facts
from ragtuned_pipeline.synthesis.relationship import relationship_facts
from ragtuned_pipeline.synthesis.sources import Names, read_sources
from ragtuned_pipeline.synthesis.stated import DocumentsOf, taught_sentences
from ragtuned_pipeline.synthesis.synthesise import Synthesis
from ragtuned_pipeline.tables import check_schema, content_hash
from ragtuned_pipeline_tests.synthesis.corpora import (
    GOLDEN,
    TINY,
    World,
    documents_of,
    golden_rows,
    harbour,
    small,
    world_of,
)

SPLITS = {"train", "held_out_wording", "held_out_fact"}


def rows_of(made: Synthesis, **wanted: Any) -> list[dict[str, Any]]:
    rows = made.qa_pairs.to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def kept_by_fact(made: Synthesis) -> dict[str, list[dict[str, Any]]]:
    facts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(made, kept=True):
        facts[row["fact_id"]].append(row)
    return facts


def lines_of(world: World) -> list[str]:
    """Return the sentences of the corpus, normalised."""
    sources = read_sources(world.documents, world.text_units)
    return [normalised(line.text) for source in sources for line in source.lines]


def holds(answers: Iterable[str], sentence: str) -> bool:
    return any(f" {sentence} " in f" {normalised(answer)} " for answer in answers)


# ---- the table ----------------------------------------------------------------------------------


def test_the_pairs_are_the_golden_ones() -> None:
    """After a wanted change: python -m ragtuned_pipeline_tests.synthesis.corpora, and read it."""
    assert golden_rows() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_golden_pairs_are_of_every_kind_and_split() -> None:
    rows = golden_rows()
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["split"] for row in rows} == SPLITS


def test_tables_have_their_schemas_and_ids_are_unique() -> None:
    made = harbour().synthesise()
    check_schema("qa_pairs", made.qa_pairs)
    check_schema("queries", made.queries_new_wording)
    check_schema("failures", made.failures)
    for ids in (made.qa_pairs["id"], made.queries_new_wording["id"]):
        assert len(set(ids.to_pylist())) == len(ids)


def test_kinds_come_in_order_and_facts_stand_together() -> None:
    rows = rows_of(harbour().synthesise())
    places = [KINDS.index(row["kind"]) for row in rows]
    assert places == sorted(places)
    facts = [row["fact_id"] for row in rows]
    changes = sum(a != b for a, b in pairwise(facts))
    assert changes == len(set(facts)) - 1
    for before, row in pairwise(rows):
        same = row["fact_id"] == before["fact_id"]
        assert row["wording"] == (before["wording"] + 1 if same else 0)


def test_two_runs_give_equal_tables_and_another_seed_others() -> None:
    def hashes(seed: int, world: World) -> tuple[str, ...]:
        made = world.synthesise(seed=seed)
        tables = (made.qa_pairs, made.queries_new_wording, made.failures)
        return tuple(content_hash(each) for each in tables)

    assert hashes(1, small(TINY)) == hashes(1, small(TINY))
    assert hashes(1, small(TINY))[:2] != hashes(2, small(TINY))[:2]


def test_another_document_leaves_the_facts_of_the_others_as_they_were() -> None:
    def local(texts: dict[str, str]) -> dict[str, tuple[str, ...]]:
        made = small(texts).synthesise()
        asked: dict[str, tuple[str, ...]] = {}
        for row in rows_of(made, kind="local"):
            if row["generator"] != PASSAGE_GENERATOR:
                asked[row["fact_id"]] = (*asked.get(row["fact_id"], ()), row["form"])
        return asked

    before = local(TINY)
    after = local(TINY | {"new.txt": "The Quell Fair opened in Harrow in 2030."})
    assert before.items() < after.items()


# ---- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.08, 0.3])
def test_every_link_leads_somewhere(share: float) -> None:
    world = harbour()
    made = world.synthesise(held_out_fact_share=share)
    known = {
        "document_ids": world.documents["id"],
        "text_unit_ids": world.text_units["id"],
        "entity_ids": world.entities["id"],
        "relationship_ids": world.relationships["id"],
        "community_ids": world.communities["id"],
    }
    ids = {column: set(table.to_pylist()) for column, table in known.items()}
    documents = dict(
        zip(
            world.text_units["id"].to_pylist(),
            world.text_units["document_id"].to_pylist(),
            strict=True,
        )
    )
    must_have = {
        "local": {"document_ids", "text_unit_ids"},
        "global_entity": {"document_ids", "text_unit_ids", "entity_ids"},
        "global_relationship": {"document_ids", "text_unit_ids", "entity_ids", "relationship_ids"},
        "global_community": {"document_ids", "text_unit_ids", "entity_ids", "community_ids"},
        "unanswerable": set(),
    }
    for row in rows_of(made):
        for column, existing in ids.items():
            assert set(row[column]) <= existing
            assert len(set(row[column])) == len(row[column])
            assert row[column] or column not in must_have[row["kind"]]
        assert set(row["document_ids"]) == {documents[unit] for unit in row["text_unit_ids"]}
    linked = {document for row in rows_of(made) for document in row["document_ids"]}
    assert linked == ids["document_ids"]


def test_an_answer_stands_in_the_documents_that_it_links_to() -> None:
    world = harbour()
    texts = {row["id"]: normalised(row["text"]) for row in world.documents.to_pylist()}
    for row in rows_of(world.synthesise(), kind="local", kept=True):
        if row["generator"] != PASSAGE_GENERATOR and row["style"] == "short":
            gold = normalised(row["gold"]).removesuffix(" s brother")
            assert all(gold in texts[document] for document in row["document_ids"])


# ---- what is asked ------------------------------------------------------------------------------


def test_default_settings_teach_every_kept_fact_eight_ways_and_hold_two_back() -> None:
    for rows in kept_by_fact(harbour().synthesise()).values():
        splits = Counter(row["split"] for row in rows)
        if "held_out_fact" in splits:
            assert splits == {"held_out_fact": 2}
        else:
            assert splits == {"train": 8, "held_out_wording": 2}
        assert len({row["form"] for row in rows}) == len(rows)


def test_short_and_long_answers_are_both_taught() -> None:
    made = harbour().synthesise()
    for rows in kept_by_fact(made).values():
        first = rows[0]
        styles = {row["style"] for row in rows if row["split"] == "train"}
        if first["kind"] == "local" and first["generator"] != PASSAGE_GENERATOR and styles:
            assert styles == {"short", "long"}
            answers = {row["style"]: row["answer"] for row in rows}
            assert normalised(answers["short"]) == normalised(first["gold"])
            assert len(answers["long"]) > len(answers["short"])
    for kind in KINDS:
        taught = rows_of(made, kind=kind, split="train", kept=True)
        assert {row["style"] for row in taught} == {"short", "long"}


def test_every_answer_contains_its_gold_and_respects_the_limit() -> None:
    for row in rows_of(harbour().synthesise(max_answer_characters=300), kept=True):
        assert len(row["answer"]) <= 300
        assert row["answer"].strip()
        if row["style"] == "short" or row["kind"] == "local":
            assert normalised(row["gold"]) in normalised(row["answer"])


def test_both_directions_of_every_relationship_are_asked_in_the_same_forms() -> None:
    world = harbour()
    rows = rows_of(world.synthesise(held_out_fact_share=0), kind="global_relationship", kept=True)
    for relationship in world.relationships.to_pylist():
        of_it = [row for row in rows if relationship["id"] in row["relationship_ids"]]
        a, b = relationship["source"], relationship["target"]
        forms: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
        for row in of_it:
            forward = row["question"].index(a) < row["question"].index(b)
            forms[forward].add((row["form"], row["split"]))
        assert len(forms[True]) == 10
        assert forms[True] == forms[False]


def test_a_pair_stated_from_both_sides_is_asked_as_one() -> None:
    world = small(["Mirela Voss hired Tom Aldane in May. Tom Aldane thanked Mirela Voss in June."])
    assert world.relationships.num_rows == 2
    made = world.synthesise(held_out_fact_share=0)
    rows = rows_of(made, kind="global_relationship")
    assert len({row["fact_id"] for row in rows}) == 2
    assert all(row["kept"] for row in rows)
    assert {id for row in rows for id in row["relationship_ids"]} == set(
        world.relationships["id"].to_pylist()
    )
    assert all(set(row["document_ids"]) == {world.documents["id"][0].as_py()} for row in rows)
    long = [row["answer"] for row in rows if row["style"] == "long"]
    assert all("hired Tom Aldane in May" in answer for answer in long)
    assert all("thanked Mirela Voss in June" in answer for answer in long)


def test_the_inverse_is_told_from_the_other_side() -> None:
    made = small(["Mirela Voss founded the Harrow Bakery in May."]).synthesise(
        held_out_fact_share=0
    )
    short = {
        row["answer"] for row in rows_of(made, kind="global_relationship", style="short", kept=True)
    }
    assert short == {
        "Mirela Voss founded the Harrow Bakery in May.",
        "Harrow Bakery was founded by Mirela Voss.",
    }


def test_passages_together_hold_every_sentence() -> None:
    world = harbour()
    made = world.synthesise(held_out_fact_share=0, max_answer_characters=250)
    passages = rows_of(made, generator=PASSAGE_GENERATOR, split="train", kept=True)
    answers = {row["answer"] for row in passages}
    assert all(holds(answers, line) for line in lines_of(world))
    assert (
        max(Counter(row["document_ids"][0] for row in passages if not row["wording"]).values()) > 1
    )


def test_every_entity_is_asked_for_by_every_name_that_is_its_own() -> None:
    made = small(["Captain Rurik Pell sailed the Grey Plover. Pell sold the Grey Plover."])
    rows = rows_of(made.synthesise(held_out_fact_share=0), kind="global_entity", split="train")
    asked = " ".join(row["question"] for row in rows)
    for name in ("Captain Rurik Pell", "Rurik Pell", "Pell", "Grey Plover"):
        assert name in asked


def test_unanswerable_names_stand_nowhere_in_the_corpus() -> None:
    world = harbour()
    made = world.synthesise(unanswerable_share=0.3)
    corpus = "\n".join(world.documents["text"].to_pylist()).casefold()
    known = {name for row in world.entities.to_pylist() for name in (row["title"], *row["aliases"])}
    rows = rows_of(made, kind=UNANSWERABLE)
    names = set()
    for identity in {row["fact_id"] for row in rows}:
        of_fact = [row for row in rows if row["fact_id"] == identity]
        # The name is what the questions of one fact share, and what its id was made of.
        words = re.sub("[?.,:]", "", of_fact[0]["question"]).split()
        runs = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, i + 5)}
        (name,) = {run for run in runs if content_id("fact", UNANSWERABLE, run) == identity}
        assert all(name in row["question"] for row in of_fact)
        names.add(name)
    assert len(names) > 10
    assert names.isdisjoint(known)
    assert not any(name.casefold() in corpus for name in names)
    assert all(row["answer"].startswith("I do not know") for row in rows)
    assert all(row["gold"] == "I do not know" and not row["document_ids"] for row in rows)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_the_share_of_refusals_is_the_setting(share: float) -> None:
    facts = {
        row["fact_id"]: row["kind"]
        for row in rows_of(harbour().synthesise(unanswerable_share=share))
    }
    refusals = sum(kind == UNANSWERABLE for kind in facts.values())
    assert refusals / len(facts) == pytest.approx(share, abs=0.02)


# ---- what is held out ---------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "share"), [(17, 0.08), (1, 0.3), (2, 0.3), (3, 0.6)])
def test_no_question_stands_in_two_splits_or_among_the_new_wordings(
    seed: int, share: float
) -> None:
    made = harbour().synthesise(seed=seed, held_out_fact_share=share)
    asked = [normalised(row["question"]) for row in rows_of(made, kept=True)]
    asked += [normalised(row["question"]) for row in made.queries_new_wording.to_pylist()]
    assert len(set(asked)) == len(asked)
    assert {row["split"] for row in rows_of(made)} == SPLITS


@pytest.mark.parametrize("seed", range(6))
def test_sentences_of_held_out_facts_stand_in_no_training_answer(seed: int) -> None:
    share = 0.3
    world = harbour()
    made = world.synthesise(seed=seed, held_out_fact_share=share)
    held = [
        row["answer"]
        for row in rows_of(made, split="held_out_fact", kind="local", style="long", kept=True)
    ]
    taught = {row["answer"] for row in rows_of(made, split="train", kept=True)}
    sentences = [
        line for line in lines_of(world) if is_held_out(seed, line, share) and holds(held, line)
    ]
    assert len(sentences) > 3
    assert not [sentence for sentence in sentences if holds(taught, sentence)]
    others = [line for line in lines_of(world) if not is_held_out(seed, line, share)]
    assert all(holds(taught, line) for line in others)


def test_all_facts_of_a_held_out_sentence_are_held_out() -> None:
    made = harbour().synthesise(held_out_fact_share=0.3)
    for rows in kept_by_fact(made).values():
        splits = {row["split"] for row in rows}
        assert splits == {"held_out_fact"} or splits == {"train", "held_out_wording"}


def seed_that_holds_out(held: str, taught: str) -> dict[str, Any]:
    """Return settings that hold out the first sentence and not the second."""
    return next(
        {"seed": seed, "held_out_fact_share": 0.5}
        for seed in range(1000)
        if is_held_out(seed, normalised(held), 0.5)
        and not is_held_out(seed, normalised(taught), 0.5)
    )


def test_a_fact_stated_twice_is_answered_by_the_sentence_that_tuning_may_see() -> None:
    held = "Mirela Voss opened the Harrow Bakery in 1987, and she sold bread to Tom Aldane."
    taught = "In 1987, Mirela Voss opened the Harrow Bakery."
    settings = seed_that_holds_out(held, taught)
    made = small([held, taught]).synthesise(**settings)
    assert any(row["gold"] == "Tom Aldane" for row in rows_of(made, split="held_out_fact"))
    trained = rows_of(made, split="train", kept=True)
    opened = [row for row in trained if len(row["document_ids"]) == 2 and row["kind"] == "local"]
    assert {row["gold"] for row in opened} == {"1987", "Harrow Bakery", "Mirela Voss"}
    assert not holds([row["answer"] for row in trained], normalised(held))


def test_a_held_out_line_without_its_full_stop_is_not_taught_by_an_overview() -> None:
    held = "I sold the old nets to Gideon Pash"
    taught = "Gideon Pash lives in Saltwick"
    settings = seed_that_holds_out(held, taught)
    made = small({"a.chat": f"Maud Okrent: {held}\nRufus Okrent: {taught}"}).synthesise(**settings)
    assert rows_of(made, split="held_out_fact", kind="local")
    trained = [row["answer"] for row in rows_of(made, split="train", kept=True)]
    assert not holds(trained, normalised(held))
    assert any(taught in answer for answer in trained)


def test_the_inverse_of_a_held_out_statement_is_not_taught() -> None:
    held = "Mirela Voss founded the Harrow Bakery in May."
    taught = "Mirela Voss loved the Harrow Bakery in winter and in summer."
    made = small([f"{held} {taught}"]).synthesise(**seed_that_holds_out(held, taught))
    answers = [row["answer"] for row in rows_of(made, split="train", kept=True)]
    assert any("loved" in answer for answer in answers)
    assert not [answer for answer in answers if "founded" in answer]


def test_taught_sentences_leave_out_what_holds_a_held_out_one() -> None:
    texts = ["Rain fell. It was late.", "it was late! Snow fell on Quell It was late"]
    assert taught_sentences(texts, ()) == [
        "Rain fell.",
        "It was late.",
        "Snow fell on Quell It was late",
    ]
    assert taught_sentences(texts, {"it was late"}) == ["Rain fell."]
    assert taught_sentences(texts, {"it was"}) == ["Rain fell."]
    assert taught_sentences(["It was later."], {"it was late"}) == ["It was later."]


def test_new_wordings_ask_what_is_trained_in_forms_that_are_not() -> None:
    made = harbour().synthesise(held_out_fact_share=0.3)
    trained = {row["fact_id"] for row in rows_of(made, split="train", kept=True)}
    golds = {row["fact_id"]: row["gold"] for row in rows_of(made)}
    asked = made.queries_new_wording.to_pylist()
    assert {row["fact_id"] for row in asked} == trained
    assert all(row["form"].startswith("new-") for row in asked)
    assert not any(row["form"].startswith("new-") for row in rows_of(made))
    assert all(row["reference_answer"] == golds[row["fact_id"]] for row in asked)
    assert {(row["kind"], row["scope"]) for row in asked} == {
        ("local", "local"),
        ("unanswerable", "local"),
        ("global_entity", "global"),
        ("global_relationship", "global"),
        ("global_community", "global"),
    }


# ---- what is dropped ----------------------------------------------------------------------------


def test_kept_and_drop_reason_say_the_same() -> None:
    rows = rows_of(harbour().synthesise(held_out_fact_share=0.6, near_duplicate_ratio=60))
    assert all(row["kept"] == (row["drop_reason"] is None) for row in rows)
    assert {row["drop_reason"] for row in rows} >= {None, "held out", "near duplicate"}


def test_the_same_fact_stated_twice_is_one_fact_with_both_sources() -> None:
    text = "Mirela Voss opened the Harrow Bakery in 1987."
    made = small([text, f"{text} Rain fell."]).synthesise(held_out_fact_share=0)
    rows = [row for row in rows_of(made, kind="local") if row["gold"] == "1987"]
    assert len({row["fact_id"] for row in rows}) == 1
    assert all(row["kept"] and len(row["document_ids"]) == 2 for row in rows)


def test_a_question_that_several_facts_share_is_kept_once_as_a_duplicate() -> None:
    """Two communities with the title and the summary of one: a parent and its only child."""
    world = small(TINY)
    twice = world.communities.take([0, 0])
    columns = ["id", "community"]
    for column, values in zip(columns, ([["com-a", "com-b"], [0, 1]]), strict=True):
        at = twice.schema.get_field_index(column)
        twice = twice.set_column(at, twice.schema.field(at), [values])
    reports = world.community_reports.take([0, 0])
    at = reports.schema.get_field_index("community")
    reports = reports.set_column(at, reports.schema.field(at), [[0, 1]])
    both = World(
        world.documents,
        world.text_units,
        world.entities,
        world.relationships,
        twice,
        reports,
    )
    made = both.synthesise(held_out_fact_share=0, train_wordings=14)
    rows = [row for row in rows_of(made, kind="global_community") if "theme" in row["form"]]
    dropped = [row for row in rows if row["drop_reason"] == "exact duplicate"]
    kept = {row["question"] for row in rows if row["kept"]}
    assert dropped
    assert {row["question"] for row in dropped} <= kept
    assert {row["drop_reason"] for row in rows} == {None, "exact duplicate"}


def test_one_question_with_two_answers_is_asked_with_its_document_named() -> None:
    made = small(
        {
            "a|The first account.txt": "Mirela Voss opened the Harrow Bakery in 1987.",
            "b|The second account.txt": "Mirela Voss opened the Harrow Bakery in 1978.",
        }
    ).synthesise(held_out_fact_share=0)
    rows = [row for row in rows_of(made, kind="local") if row["gold"] in ("1987", "1978")]
    assert len({row["fact_id"] for row in rows}) == 2
    for row in rows:
        assert row["kept"]
        assert ("first account" if row["gold"] == "1987" else "second account") in row["question"]


def test_two_answers_in_one_document_are_dropped_as_ambiguous() -> None:
    made = small(
        [
            "Mirela Voss opened the Harrow Bakery in 1987. "
            "Mirela Voss opened the Harrow Bakery in 1978."
        ]
    ).synthesise(held_out_fact_share=0)
    rows = [row for row in rows_of(made, kind="local") if row["gold"] in ("1987", "1978")]
    assert [row["drop_reason"] for row in rows] == ["ambiguous"]
    assert {row["split"] for row in rows} == {"train"}


def test_of_two_nearly_equal_questions_with_one_answer_the_later_is_dropped() -> None:
    world = small(
        [
            "Mirela Voss opened the old Harrow Bakery in Saltwick in 1987. "
            "Mirela Voss opened the cold Harrow Bakery in Saltwick in 1987. "
            "Tom Aldane opened the cold Harrow Bakery in Saltwick in 1988."
        ]
    )
    made = world.synthesise(held_out_fact_share=0, near_duplicate_ratio=90)
    years = [row for row in rows_of(made, kind="local") if row["gold"] in ("1987", "1988")]
    near = [row for row in years if row["drop_reason"] == "near duplicate"]
    assert len(near) == 1
    assert len({row["fact_id"] for row in years if row["kept"]}) == 2
    strict = world.synthesise(held_out_fact_share=0, near_duplicate_ratio=100)
    assert not [row for row in rows_of(strict) if row["drop_reason"] == "near duplicate"]


def test_an_answer_that_the_name_of_the_document_gives_away_is_dropped() -> None:
    world = small(
        {
            "a|Notes on the Harrow Bakery.txt": "Mirela Voss opened the Harrow Bakery.",
            "b|Other notes.txt": "Mirela Voss opened the Quell Fair.",
        }
    )
    asked = {
        row["question"]: row["drop_reason"]
        for row in rows_of(world.synthesise(held_out_fact_share=0), kind="local")
        if row["gold"] in ("Harrow Bakery", "Quell Fair")
    }
    for question, reason in asked.items():
        named = "Notes on the Harrow Bakery" in question
        assert reason == ("question holds its answer" if named else None)
    assert set(asked.values()) == {None, "question holds its answer"}


def test_a_document_that_gives_the_answer_away_is_not_named_in_its_question() -> None:
    texts = {"a|Notes on the Harrow Bakery.txt": "She opened the Harrow Bakery in 1987."}
    rows = rows_of(small(texts).synthesise(held_out_fact_share=0), kind="local")
    golds = {row["gold"] for row in rows if row["generator"] != PASSAGE_GENERATOR}
    assert golds == {"1987"}


def test_an_answer_that_is_a_whole_clause_is_dropped() -> None:
    places = " and ".join(f"Harrow{letter * 30}" for letter in "abcd")
    world = small([f"Mirela Voss lives in {places}. Tom Aldane lives in Saltwick."])
    sources = read_sources(world.documents, world.text_units)
    facts = sentence_facts(sources, Names(world.entities), SynthesisSettings())
    assert {fact.gold: fact.drop for fact in facts} == {
        places: "answer too long",
        "Mirela Voss": None,
        "Saltwick": None,
        "Tom Aldane": None,
    }


def test_a_document_without_a_sentence_is_a_failure() -> None:
    documents = documents_of({"a.txt": "Maud Okrent lives in Saltwick.", "b.txt": " \n---\n"})
    made = world_of(documents).synthesise()
    (failure,) = made.failures.to_pylist()
    assert failure["stage"] == "synthesis"
    assert failure["item_id"] == documents["id"][1].as_py()
    assert failure["reason"].endswith("no sentence found, so nothing to ask")


def test_a_corpus_that_says_nothing_gives_empty_tables() -> None:
    made = small([" \n---\n"]).synthesise()
    assert made.qa_pairs.num_rows == made.queries_new_wording.num_rows == 0
    assert made.failures.num_rows == 1


def test_a_relationship_without_a_sentence_left_is_dropped_as_held_out() -> None:
    world = small(["Mirela Voss founded the Harrow Bakery in May."])
    facts = relationship_facts(
        world.relationships,
        Names(world.entities),
        DocumentsOf(world.text_units),
        SynthesisSettings(),
        {"mirela voss founded the harrow bakery in may"},
    )
    assert [fact.drop for fact in facts] == ["held out", "held out"]
