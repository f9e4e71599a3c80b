"""A small world by hand: six facts, their wordings, documents, and answers of three systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.evaluation.control import shuffled_control
from ragtuned_pipeline.evaluation.provenance import MemoryTables
from ragtuned_pipeline.evaluation.questions.queries import build_queries
from ragtuned_pipeline.evaluation.scorecard import score
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.engine import Message, Reply
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.tables import SCHEMAS, table

# fact: (stating sentence, question, gold)
FACTS = {
    "fact-1": ("Mirela Voss opened the Harrow Bakery in 1987.", "Who opened it?", "Mirela Voss"),
    "fact-2": ("Ivo Pell mended the clock of Harrow.", "Who mended the clock?", "Ivo Pell"),
    "fact-3": ("Ada Renk rows the ferry to Quell.", "Who rows the ferry?", "Ada Renk"),
    "fact-4": ("Tam Orrin keeps bees on Quell.", "Who keeps bees?", "Tam Orrin"),
    "fact-5": ("The Quell Fair is held in June.", "When is the Quell Fair held?", "June"),
    "fact-6": ("The bakery sells forty-two sorts of bread.", "How many sorts?", "forty-two"),
}
HELD_OUT_FACT = "fact-6"


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate(changes)


def documents() -> pa.Table:
    sentences = [sentence for sentence, _, _ in FACTS.values()]
    texts = {
        "bakery.txt": f"{sentences[0]} {sentences[5]} {sentences[1]}",
        "quell.txt": f"{sentences[2]} {sentences[3]} {sentences[4]}",
    }
    blank = dict.fromkeys(("creation_date", "raw_data"))
    return table(
        "documents",
        [
            blank
            | {
                "id": f"doc-{place}",
                "human_readable_id": place,
                "title": name,
                "text": text,
                "text_unit_ids": [],
                "path": name,
                "format": "text",
            }
            for place, (name, text) in enumerate(texts.items())
        ],
    )


def pair(fact: str, number: int, split: str, **changes: Any) -> dict[str, Any]:
    """One qa_pairs row that asks `fact` in its wording `number`."""
    sentence, question, gold = FACTS[fact]
    asked = f"{question} (wording {number})"
    empty = ("text_unit_ids", "entity_ids", "relationship_ids", "community_ids")
    return {
        **{name: [] for name in empty},
        "id": content_id("qa", fact, asked),
        "kind": "local",
        "question": asked,
        "answer": sentence,
        "wording": number,
        "fact_id": fact,
        "document_ids": ["doc-0" if fact in ("fact-1", "fact-2", "fact-6") else "doc-1"],
        "split": split,
        "kept": True,
        "drop_reason": None,
        "generator": "by hand",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "gold": gold,
        "form": f"form-{number}",
        "style": "long" if number % 2 else "short",
    } | changes


def refusal(number: int, split: str) -> dict[str, Any]:
    question = f"Who is Zorn Quill number {number}?"
    return pair("fact-1", number, split) | {
        "id": content_id("qa", question),
        "kind": "unanswerable",
        "question": question,
        "answer": "I do not know.",
        "gold": "do not know",
        "fact_id": f"nothing-{number}",
        "document_ids": [],
    }


def qa_pairs() -> pa.Table:
    trained = [fact for fact in FACTS if fact != HELD_OUT_FACT]
    rows = [pair(fact, number, "train") for fact in trained for number in range(4)]
    rows += [pair(fact, 4 + n, "held_out_wording") for fact in trained for n in range(2)]
    rows += [pair(HELD_OUT_FACT, number, "held_out_fact") for number in range(2)]
    rows += [refusal(0, "train"), refusal(1, "held_out_wording"), refusal(2, "held_out_fact")]
    rows.append(pair("fact-1", 9, "held_out_wording", kept=False, drop_reason="near duplicate"))
    return table("qa_pairs", rows)


def training_rows(pairs: pa.Table) -> pa.Table:
    return table(
        "training_rows",
        [
            {
                "id": row["id"],
                "fact_id": row["fact_id"],
                "kind": row["kind"],
                "system": None,
                "prompt": row["question"],
                "completion": row["answer"] if row["style"] == "long" else row["gold"],
                "n_tokens": 20,
                "epochs": 1,
            }
            for row in pairs.to_pylist()
            if row["split"] == "train"
        ],
    )


def new_wording() -> pa.Table:
    blank = dict.fromkeys(("persona", "task"))
    return table(
        "queries",
        [
            blank
            | {
                "id": f"query-{fact}",
                "scope": "local",
                "question": f"A stranger says: {question} Reply?",
                "reference_answer": gold,
                "document_ids": ["doc-0"],
                "question_set": "new_wording",
                "kind": "local",
                "fact_id": fact,
                "form": "new-1",
                "long_answer": sentence,
                "evidence": None,
                "source_ids": [],
                "generator": "by hand",
                "seed": 17,
            }
            for fact, (sentence, question, gold) in FACTS.items()
        ],
    )


def generated(*rows: dict[str, Any]) -> pa.Table:
    """Queries as `generate_queries` makes them; none where none are given."""
    return table("queries", rows)


def coverage() -> pa.Table:
    texts = dict(zip(*documents().select(["id", "text"]).to_pydict().values(), strict=True))
    place = {
        sentence: (i, t.index(sentence))
        for sentence, _, _ in FACTS.values()
        for i, t in texts.items()
        if sentence in t
    }
    rows = [
        {
            "document_id": place[sentence][0],
            "text_unit_id": place[sentence][0].replace("doc", "tu"),
            "sentence": sentence,
            "start": place[sentence][1],
            "end": place[sentence][1] + len(sentence),
            "fact_ids": [fact] if fact != HELD_OUT_FACT else [],
            "covered": fact != HELD_OUT_FACT,
            "reason": None if fact != HELD_OUT_FACT else "held out as a fact",
        }
        for fact, (sentence, _, _) in FACTS.items()
    ]
    return table("coverage", rows)


def text_units() -> pa.Table:
    """One a document, the whole of it."""
    empty = {name: [] for name in ("entity_ids", "relationship_ids", "covariate_ids")}
    rows = documents().to_pylist()
    return table(
        "text_units",
        [
            empty
            | {
                "id": row["id"].replace("doc", "tu"),
                "human_readable_id": place,
                "text": row["text"],
                "n_tokens": len(row["text"].split()),
                "document_id": row["id"],
                "start": 0,
                "end": len(row["text"]),
            }
            for place, row in enumerate(rows)
        ],
    )


def entity(id_: str, title: str) -> dict[str, Any]:
    """A row of entities."""
    return {
        "id": id_,
        "human_readable_id": 0,
        "title": title,
        "type": "person",
        "description": f"About {title}.",
        "text_unit_ids": ["tu-0"],
        "frequency": 1,
        "degree": 1,
        "aliases": [],
        "type_votes": [("person", 1)],
    }


def relationship(id_: str, source: str, target: str, sentence: str) -> dict[str, Any]:
    """A row of relationships that `sentence` states."""
    return {
        "id": id_,
        "human_readable_id": 0,
        "source": source,
        "target": target,
        "description": sentence,
        "weight": 1.0,
        "combined_degree": 2,
        "text_unit_ids": ["tu-0"],
        "source_id": f"ent-{source}",
        "target_id": f"ent-{target}",
        "sentences": [sentence],
        "inverse": None,
    }


def linked_pairs() -> pa.Table:
    """The pairs with what they come from: their document's text unit; of the six facts also the
    entity that is asked for, its relationship with the town, and their community."""
    rows = qa_pairs().to_pylist()
    for row in rows:
        row["text_unit_ids"] = [each.replace("doc", "tu") for each in row["document_ids"]]
        if row["fact_id"] in FACTS:
            number = row["fact_id"].removeprefix("fact-")
            row["entity_ids"] = [f"ent-{row['gold']}", "ent-Harrow"]
            row["relationship_ids"] = [f"rel-{number}"]
            row["community_ids"] = ["com-1"]
    return table("qa_pairs", rows)


def memory(**changes: pa.Table) -> MemoryTables:
    """All tables of the world that an answer is followed back through."""
    pairs = linked_pairs()
    names = [*(gold for _, _, gold in FACTS.values()), "Harrow"]
    related = [
        relationship(fact.replace("fact", "rel"), gold, "Harrow", sentence)
        for fact, (sentence, _, gold) in FACTS.items()
    ]
    community: dict[str, Any] = dict.fromkeys(SCHEMAS["communities"].names)
    tables = {
        "documents": documents(),
        "text_units": text_units(),
        "entities": table("entities", [entity(f"ent-{name}", name) for name in names]),
        "relationships": table("relationships", related),
        "communities": table("communities", [community | {"id": "com-1", "title": "The town"}]),
        "qa_pairs": pairs,
        "coverage": coverage(),
        "training_rows": training_rows(pairs),
    }
    return MemoryTables(**tables | changes)


def answers(system: str, queries: pa.Table, texts: Sequence[str]) -> pa.Table:
    """The answers table of a system that says `texts`, at the cost of a word a token."""
    return table(
        "answers",
        [
            {
                "id": content_id("answer", system, query["id"]),
                "query_id": query["id"],
                "system": system,
                "answer": text,
                "prompt_tokens": len(query["question"].split()),
                "completion_tokens": len(text.split()),
                "seconds": 0.25,
                "context_ids": [],
                "calls": 1,
                "money": 0.0,
            }
            for query, text in zip(queries.to_pylist(), texts, strict=True)
        ],
    )


def count_words(rows: Sequence[tuple[str | None, str, str]]) -> np.ndarray:
    return np.array([len(f"{system or ''} {p} {c}".split()) for system, p, c in rows], dtype=int)


class Parrot:
    """An engine that repeats the question; it remembers what it was loaded with."""

    loaded: list[tuple[str, Path | None, int]]

    def __init__(self, base_model: str, adapter: Path | None, batch_size: int) -> None:
        Parrot.loaded = [*getattr(Parrot, "loaded", []), (base_model, adapter, batch_size)]

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        return [Reply(talk[-1]["content"], len(talk), max_tokens, 0.5) for talk in conversations]


def evaluation() -> tuple[pa.Table, pa.Table, pa.Table]:
    """(qa_pairs, queries, answers): a tuned model that knows its facts and guesses the rest, a base
    model that knows nothing, and a retriever that quotes too much."""
    pairs = qa_pairs()
    rows = training_rows(pairs)
    queries, _ = build_queries(
        pairs, rows, new_wording(), generated(), None, documents(), settings(questions_per_set=4)
    )
    tuned, base, quoting = [], [], []
    for place, query in enumerate(queries.to_pylist()):
        known = query["question_set"] in ("held_out_wording", "new_wording")
        tuned.append(query["reference_answer"] if known and place % 4 else "I do not know.")
        base.append("The mill.")
        quoting.append(f"It is said: {query['long_answer']} So it is.")
    said = {"tuned": tuned, "base": base, "vanilla_rag": quoting}
    tables = [answers(system, queries, texts) for system, texts in said.items()]
    return pairs, queries, pa.concat_tables(tables)


WIN_RATE = {
    "scope": "local",
    "dimension": "overall",
    "system_a": "base",
    "system_b": "tuned",
    "n": 3,
    "wins_a": 0,
    "wins_b": 2,
    "ties": 1,
    "disagreements": 1,
    "unjudged": 1,
    "win_rate": 1 / 6,
    "low": 0.01,
    "high": 0.6,
}


def grades(queries: pa.Table) -> pa.Table:
    """What a grader says of the tuned model: right where it knows, and of one answer nothing."""
    rows = [
        {
            "id": content_id("grade", query["id"]),
            "query_id": query["id"],
            "system": "tuned",
            "verdict": None if place == 0 else "partly" if place % 2 else "correct",
            "reason": "as the reference says",
            "judge": "by hand",
        }
        for place, query in enumerate(queries.to_pylist())
        if query["question_set"] == "held_out_wording"
    ]
    return table("grades", rows)


def scored(**changes: Any) -> dict[str, Any]:
    """The scorecard of `evaluation`, with other arguments where `changes` has them."""
    pairs, queries, given = evaluation()
    every = settings(control_facts=100)
    control = shuffled_control(training_rows(pairs), pairs, count_words, every)
    wrong = ["Ivo Pell"] * control.queries.num_rows
    arguments: dict[str, Any] = {
        "corpus": "harrow",
        "queries": queries,
        "answers": given,
        "control_queries": control.queries,
        "control_answers": answers("tuned", control.queries, wrong),
        "descriptions": {"tuned": "with adapter", "base": "without", "vanilla_rag": "quotes"},
        "skipped": {"long_context": "The corpus does not fit."},
        "qa_pairs": pairs,
        "training_rows": training_rows(pairs),
        "coverage": coverage(),
        "left_out": {"wordings": 3},
        "teacher": {},
        "grades": grades(queries),
        "win_rates": table("win_rates", [WIN_RATE]),
        "judge": {"engine": "rules", "identity": "by hand"},
        "ablation": {},
        "general_ability": {},
        "versions": {"numpy": "2", "adapter": "abc"},
        "seed": 29,
    }
    return score(**arguments | changes)
