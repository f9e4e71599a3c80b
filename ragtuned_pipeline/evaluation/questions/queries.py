"""The questions that every system is asked, in eight sets.

held_out_wording  a trained fact, in a form of asking never used for that fact in tuning
new_wording       a trained fact, in a form known neither to tuning nor to the embedded base
held_out_fact     a fact of the corpus of which no training row was made
generated_local   questions drawn evenly over the corpus's text units, whether trained or not
generated_global  questions on the corpus as a whole, by persona and task, without names (the paper)
gold_local        questions of the user's own about one fact or a few (single_fact, multi_hop)
gold_global       questions of the user's own about the corpus as a whole (whole_corpus)
unanswerable      questions that the corpus does not answer; a refusal is right

The first two show what was learned, the third what was not taught: there the tuned model can only
be right by inference or by luck.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.metrics import tokens
from ragtuned_pipeline.evaluation.questions.quotes import statement
from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.settings import EvaluationSettings, SettingsError
from ragtuned_pipeline.tables import Failure, table

QUESTION_SETS = (
    "held_out_wording",
    "new_wording",
    "held_out_fact",
    "generated_local",
    "generated_global",
    "gold_local",
    "gold_global",
    "unanswerable",
)

_SET_OF_TYPE = {
    "single_fact": "gold_local",
    "multi_hop": "gold_local",
    "whole_corpus": "gold_global",
    "unanswerable": "unanswerable",
}
_TYPE_NAMES = {
    **{name: name for name in _SET_OF_TYPE},
    **dict.fromkeys(("", "fact", "single", "single_hop", "local"), "single_fact"),
    **dict.fromkeys(("multi", "multihop"), "multi_hop"),
    **dict.fromkeys(("global", "corpus", "overview"), "whole_corpus"),
    **dict.fromkeys(("no_answer", "not_answerable", "impossible"), "unanswerable"),
}
_COLUMN_NAMES = {
    "question": ("question", "query", "q", "prompt"),
    "answer": ("answer", "answers", "gold", "gold_answer", "reference", "reference_answer", "a"),
    "type": ("type", "kind", "category"),
    "documents": ("documents", "document", "evidence", "sources", "source", "files", "file"),
}
_GOLD_STAGE = "gold_questions"
_GENERATED = ("generated_local", "generated_global")
_SOURCES = ("text_unit_ids", "entity_ids", "relationship_ids", "community_ids")


def build_queries(
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    new_wording: pa.Table,
    generated: pa.Table,
    gold_questions: Path | None,
    documents: pa.Table,
    settings: EvaluationSettings,
) -> tuple[pa.Table, list[Failure]]:
    """Return the queries table, sorted by question set and id, and what could not be asked.

    Each set but the generated ones has at most `settings.questions_per_set` questions, drawn by
    `settings.seed` in proportion to the kinds in it; no fact is asked twice before every fact is
    asked once. A reference_answer with several lines accepts any of them. Questions that are
    training questions word for word are taken out of every set but the user's own.

    Args:
        qa_pairs, training_rows: of synthesis; only `trained_facts` count as trained.
        new_wording: a queries table with the question set new_wording.
        generated: a queries table with the question sets generated_local and generated_global;
            they have the numbers that they were made in.
        gold_questions: the user's own (see `read_gold`), or None.
        documents: what the gold questions' evidence refers to.

    Raises:
        SettingsError: the gold file cannot be read at all.
    """
    trained = trained_facts(training_rows)
    kept = qa_pairs.filter(pc.field("kept"))
    answerable = pc.field("kind") != "unanswerable"
    taught = pc.field("fact_id").isin(trained)
    # A name that tuning has seen refused would measure recall of that refusal.
    absent = ~pc.field("fact_id").isin(training_rows["fact_id"].unique())
    rows = [
        *_from_pairs(
            kept.filter((pc.field("split") == "held_out_wording") & answerable & taught),
            "held_out_wording",
            settings.seed,
        ),
        *_from_pairs(
            kept.filter((pc.field("split") == "held_out_fact") & answerable),
            "held_out_fact",
            settings.seed,
        ),
        *_from_pairs(
            kept.filter((pc.field("split") != "train") & ~answerable & absent),
            "unanswerable",
            settings.seed,
        ),
        *_renewed(new_wording.filter(pc.if_else(answerable, taught, absent))),
        *generated.to_pylist(),
    ]
    trained_on = set(map(plain_question, training_rows.column("prompt").to_pylist()))
    rows, failures = _without_training_questions(rows, trained_on)
    if gold_questions is not None:
        gold, gold_failures = read_gold(gold_questions, documents)
        rows += gold
        _, taught_word_for_word = _without_training_questions(gold, trained_on)
        failures += [
            replace(each, stage=_GOLD_STAGE, reason=f"asked all the same, but {each.reason}")
            for each in taught_word_for_word
        ]
        failures += gold_failures
    sampled = _with_evidence(_sampled(rows, settings), qa_pairs, documents)
    return table("queries", sampled), failures


def trained_facts(training_rows: pa.Table) -> pa.Array:
    """Return the ids of the facts that tuning has seen in at least two wordings.

    One that it has seen in a single one (a passage) is stored but cannot be asked for in another
    (Allen-Zhu & Li, 2309.14316), and is not among the trained facts that are scored.
    """
    counts = training_rows.group_by("fact_id").aggregate([("id", "count")])
    return counts.filter(pc.field("id_count") >= 2)["fact_id"].combine_chunks()


def pair_query(pair: Mapping[str, Any], question_set: str) -> dict[str, Any]:
    """Return the queries row that asks a qa_pairs row."""
    return query_row(
        question_set=question_set,
        scope="global" if pair["kind"].startswith("global") else "local",
        kind=pair["kind"],
        question=pair["question"],
        reference_answer=" ".join(pair["gold"].split()),
        long_answer=pair["answer"],
        document_ids=pair["document_ids"],
        fact_id=pair["fact_id"],
        form=pair["form"],
        source_ids=[one for name in _SOURCES for one in pair[name]],
        generator=pair["generator"],
    )


def query_row(**columns: Any) -> dict[str, Any]:
    """Return a row of the queries table with its id; what is not given is null or empty."""
    row: dict[str, Any] = {
        "persona": None,
        "task": None,
        "fact_id": None,
        "form": None,
        "long_answer": None,
        "evidence": None,
        "source_ids": [],
        "generator": "gold",
        "seed": None,
    }
    row |= columns
    row["id"] = content_id(
        "query", row["question_set"], row["question"], row["reference_answer"], row["fact_id"] or ""
    )
    return row


def _from_pairs(pairs: pa.Table, question_set: str, seed: int) -> Iterator[dict[str, Any]]:
    return (pair_query(pair, question_set) | {"seed": seed} for pair in pairs.to_pylist())


def _renewed(new_wording: pa.Table) -> Iterator[dict[str, Any]]:
    """New wordings of what has no answer stand with the unanswerable questions."""
    for row in new_wording.drop_columns(["id"]).to_pylist():
        unanswerable = row["kind"] == "unanswerable"
        yield query_row(**row | {"question_set": "unanswerable" if unanswerable else "new_wording"})


def _without_training_questions(
    rows: Sequence[dict[str, Any]], seen: Collection[str]
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Take out questions that tuning has seen word for word: they would measure recall of a row."""
    fresh = [row for row in rows if plain_question(row["question"]) not in seen]
    failures = [
        Failure("queries", row["id"], f"{row['question']!r} is word for word a training question")
        for row in rows
        if plain_question(row["question"]) in seen
    ]
    return fresh, failures


def _with_evidence(
    rows: Sequence[dict[str, Any]], qa_pairs: pa.Table, documents: pa.Table
) -> list[dict[str, Any]]:
    """Give each question about a fact the sentences of its documents that state it."""
    open_rows = [row for row in rows if row["fact_id"] and row["evidence"] is None]
    facts = pa.array(sorted({row["fact_id"] for row in open_rows}), pa.string())
    told = qa_pairs.filter(pc.field("fact_id").isin(facts)).select(["fact_id", "answer"])
    answers = longest_answers(told.to_pylist())
    named = pa.array(sorted({one for row in open_rows for one in row["document_ids"]}), pa.string())
    read = documents.filter(pc.field("id").isin(named)).select(["id", "text"]).to_pylist()
    texts = {row["id"]: row["text"] or "" for row in read}
    for row in open_rows:
        answer = answers.get(row["fact_id"], row["long_answer"] or "")
        of = [texts[one] for one in row["document_ids"] if one in texts]
        stated = statement(row["question"], row["reference_answer"], answer, of)
        row["evidence"] = "\n".join(stated) or None
    return list(rows)


def longest_answers(pairs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return fact -> the longest answer that qa_pairs rows give to it, the first in the alphabet
    of several."""
    best: dict[str, str] = {}
    for pair in pairs:
        known = best.setdefault(pair["fact_id"], pair["answer"])
        best[pair["fact_id"]] = min(known, pair["answer"], key=lambda text: (-len(text), text))
    return best


def plain_question(question: str) -> str:
    """Return what two questions share that are the same word for word."""
    return " ".join(question.split()).casefold()


def _sampled(rows: Iterable[dict[str, Any]], settings: EvaluationSettings) -> list[dict[str, Any]]:
    strata: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in {row["id"]: row for row in rows}.values():
        strata[row["question_set"]][row["kind"]].append(row)
    chosen: list[dict[str, Any]] = []
    for question_set in QUESTION_SETS:
        kinds = sorted(strata[question_set].items())
        sizes = [len(of_kind) for _, of_kind in kinds]
        most = sum(sizes) if question_set in _GENERATED else settings.questions_per_set
        shares = _shares(sizes, most)
        drawn = [
            row
            for (_, of_kind), share in zip(kinds, shares, strict=True)
            for row in _facts_in_turn(of_kind, settings.seed)[:share]
        ]
        chosen += sorted(drawn, key=lambda row: row["id"])
    return chosen


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Split `total` in proportion to `sizes` (largest remainder), at least 1 for each where `total`
    allows it, never more than there are."""
    if sum(sizes) <= total:
        return list(sizes)
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [max(int(share), 1) for share in exact]
    while sum(shares) != total:
        step = 1 if sum(shares) < total else -1
        # The one furthest from its due in the direction of the correction; none is taken to 0
        # while another can give.
        able = [i for i in range(len(sizes)) if step > 0 or shares[i] > 1] or range(len(sizes))
        place = max(able, key=lambda i: (step * (exact[i] - shares[i]), -i))
        shares[place] += step
    return shares


def _facts_in_turn(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return `rows` in a seeded order in which each fact's first question precedes any second."""
    drawn = sorted(rows, key=lambda row: (seeded_int(seed, "query", row["id"]), row["id"]))
    turns: dict[str, int] = defaultdict(int)
    keyed = []
    for place, row in enumerate(drawn):
        fact = row["fact_id"] or row["id"]
        keyed.append((turns[fact], place))
        turns[fact] += 1
    return [drawn[place] for _, place in sorted(keyed)]


# ---- the user's own questions ----


@dataclass(frozen=True)
class _GoldError(Exception):
    reason: str


def read_gold(path: Path, documents: pa.Table) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Return queries rows from a file of questions with known answers, and the rows left out.

    The file is .jsonl, .json (a list, or an object with a list "questions") or .csv, in UTF-8, with
    question, answer (a string, or a list of accepted ones), optional type (single_fact, multi_hop,
    whole_corpus, unanswerable; single_fact where absent) and optional documents or evidence: names
    of documents, or words that stand in them (";" between several in a csv).

    Raises:
        SettingsError: the file is absent, of another kind, or cannot be parsed as a whole.
    """
    found = _Evidence(documents)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    seen: dict[str, int] = {}
    for number, record in _records(path):
        item = f"{path.name}:{number}"
        try:
            row, missing = _gold_row(record, found)
            if row["id"] in seen:
                raise _GoldError(f"repeats row {seen[row['id']]}; remove one of them")
        except _GoldError as error:
            failures.append(Failure(_GOLD_STAGE, item, f"row left out: {error.reason}"))
            continue
        seen[row["id"]] = number
        rows.append(row)
        failures += [
            Failure(_GOLD_STAGE, item, f"asked, but its evidence {name!r} is in no document")
            for name in missing
        ]
    return rows, failures


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, what stands there); a bad line of a .jsonl is its error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"gold questions {path}: cannot be read as UTF-8 text ({error})"
        ) from None
    match path.suffix.lower():
        case ".jsonl":
            yield from (
                (number, _json_line(line))
                for number, line in enumerate(text.split("\n"), start=1)
                if line.strip()
            )
        case ".json":
            try:
                content = json.loads(text)
            except json.JSONDecodeError as error:
                raise SettingsError(f"gold questions {path}: not valid JSON ({error})") from None
            content = content.get("questions") if isinstance(content, dict) else content
            if not isinstance(content, list):
                raise SettingsError(
                    f"gold questions {path}: needs a list of questions, "
                    'or an object with the list under "questions"'
                )
            yield from enumerate(content, start=1)
        case ".csv":
            yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1)
        case ending:
            raise SettingsError(
                f"gold questions {path}: the ending {ending!r} is not .jsonl, .json or .csv"
            )


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return _GoldError(f"not valid JSON ({error})")


def _gold_row(record: Any, evidence: _Evidence) -> tuple[dict[str, Any], list[str]]:
    if isinstance(record, _GoldError):
        raise record
    if not isinstance(record, Mapping):
        raise _GoldError("not an object with question and answer")
    fields = {str(name).strip().lower(): value for name, value in record.items()}
    question = " ".join(_one(fields, "question"))
    answers = _one(fields, "answer")
    written = " ".join(_one(fields, "type")).lower().replace("-", "_").replace(" ", "_")
    kind = _TYPE_NAMES.get(written)
    if not question:
        raise _GoldError("no question (column question)")
    if kind is None:
        raise _GoldError(f"type {written!r} is not one of {', '.join(_SET_OF_TYPE)}")
    if kind != "unanswerable" and not any(map(tokens, answers)):
        raise _GoldError("no answer (column answer); where there is none, set type unanswerable")
    named = [name for value in _one(fields, "documents") for name in value.split(";")]
    found = evidence.find(filter(None, map(str.strip, named)))
    row = query_row(
        question_set=_SET_OF_TYPE[kind],
        scope="global" if kind == "whole_corpus" else "local",
        kind=kind,
        question=question,
        reference_answer="\n".join(answers),
        document_ids=found.document_ids,
        evidence="\n".join(found.quotations) or None,
    )
    return row, found.missing


def _one(fields: Mapping[str, Any], column: str) -> list[str]:
    """The values of the first name of `column` that is filled in, with single spaces."""
    for name in _COLUMN_NAMES[column]:
        value = fields.get(name)
        values = value if isinstance(value, list) else [value]
        plain = [" ".join(str(v).split()) for v in values if v is not None]
        if any(plain):
            return [v for v in plain if v]
    return []


@dataclass(frozen=True)
class _Found:
    """What the evidence of a gold question leads to; `missing` stands nowhere."""

    document_ids: list[str]
    quotations: list[str]
    missing: list[str]


class _Evidence:
    """Finds documents by path, title or file name, or by words that stand in their text."""

    def __init__(self, documents: pa.Table) -> None:
        self._texts: dict[str, str] = {}
        self._names: dict[str, set[str]] = defaultdict(set)
        for row in documents.select(["id", "title", "path", "text"]).to_pylist():
            path = Path(row["path"] or "")
            for name in {row["id"], row["title"], str(path), path.name, path.stem} - {None, ""}:
                self._names[name.casefold()].add(row["id"])
            self._texts[row["id"]] = plain_question(row["text"] or "")

    def find(self, names: Iterable[str]) -> _Found:
        """Return what each of `names`, a document's or words that stand in one, leads to."""
        ids: set[str] = set()
        quotations: list[str] = []
        missing: list[str] = []
        for name in names:
            named = self._names.get(name.casefold())
            quoting = named or {
                key for key, text in self._texts.items() if plain_question(name) in text
            }
            ids |= quoting
            if not quoting:
                missing.append(name)
            elif not named:
                quotations.append(name)
        return _Found(sorted(ids), quotations, missing)
