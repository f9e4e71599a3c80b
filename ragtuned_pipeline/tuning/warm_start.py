"""Re-tuning from the last adapter: which rows it has learned, and which are tuned on then.

Going on from an adapter with the new rows alone makes a model forget the earlier ones; a replay of
a part of them counters it (Robins 1995, doi 10.1080/09540099550039318). Nothing makes it unlearn:
where the corpus has withdrawn a statement that the adapter has learned, tuning starts from scratch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.synthesis.facts import LOCAL
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.tuning.adapter_store import adapter_shape

# What an adapter has learned, one row a training row, without its text: `prompt` and `answer` are
# hashes, `content` is one of the system message and both. `statement`: one of `statements`, when it
# was learned. `age`, against the adapter that was promoted when this one was tuned: "first" (there
# was none), "new", "old" (it had learned the very row), or "past": this one went on from it, and
# the row is no longer among those to be tuned on.
LEARNED = pa.schema(
    [
        ("id", pa.string()),
        ("fact_id", pa.string()),
        ("statement", pa.bool_()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("content", pa.string()),
        ("age", pa.string()),
    ]
)

# Of the tokens of a training from scratch: how many a warm start may take, to be worth it.
MAX_TOKENS = 0.75


class StartFromScratch(ValueError):
    """A warm start is not possible, or not worth it; the message is the reason, a clause."""


@dataclass(frozen=True)
class WarmRows:
    """The rows to go on with, in the order of the table that they were chosen from."""

    rows: pa.Table
    new: int
    replayed: int


def rows_file(adapters: Path, corpus: str, content: str) -> Path:
    """Return where the rows that an adapter has learned are kept: a Parquet file beside its folder,
    to be deleted with it.

    Args:
        adapters: <home>/adapters.
        content: the adapter's content hash.
    """
    return adapters / corpus / f"{content}.rows.parquet"


def check_shape(adapter: Path, settings: TuningSettings) -> None:
    """Raise StartFromScratch where an adapter has another rank or alpha than the settings ask."""
    (rank, alpha), asked = adapter_shape(adapter), (settings.rank, settings.alpha)
    if (rank, alpha) != asked:
        raise StartFromScratch(
            f"the adapter {adapter.name} has rank {rank} and alpha {alpha}, and the settings "
            f"tuning.rank and tuning.alpha are {asked[0]} and {asked[1]}"
        )


def row_contents(rows: pa.Table) -> list[str]:
    """Return a hash of what each row teaches: its system message, prompt and completion."""
    columns = (rows[name].to_pylist() for name in ("system", "prompt", "completion"))
    return [content_id("row", system or "", *told) for system, *told in zip(*columns, strict=True)]


def statements(qa_pairs: pa.Table) -> pa.Table:
    """Return the pairs that may be tuned on and say what one place of the corpus says.

    Those about entities, relationships and communities are put together from these, and passages
    are shown whole: each changes whenever something is added, though nothing is withdrawn.
    """
    return qa_pairs.filter(
        pc.field("kept")
        & (pc.field("split") == "train")
        & (pc.field("kind") == LOCAL)
        & (pc.field("generator") != PASSAGE_GENERATOR)
    )


def learned_rows(
    rows: pa.Table, stated: pa.Table, earlier: pa.Table | None, goes_on: bool
) -> pa.Table:
    """Return what an adapter has learned; see LEARNED.

    Args:
        rows: the training rows of the corpus as they are now.
        stated: its `statements`.
        earlier: what the adapter that is promoted has learned, None where there is none.
        goes_on: whether the adapter was made from that one, and so knows its rows too.
    """
    contents = row_contents(rows)
    if earlier is None:
        ages = ["first"] * len(contents)
    else:
        known = set(earlier["content"].to_pylist())
        ages = ["old" if each in known else "new" for each in contents]
    learned = pa.table(
        {
            "id": rows["id"],
            "fact_id": rows["fact_id"],
            "statement": pc.is_in(rows["id"], value_set=stated["id"].combine_chunks()),
            "prompt": _hashes(rows["prompt"]),
            "answer": _hashes(rows["completion"]),
            "content": pa.array(contents, pa.string()),
            "age": pa.array(ages, pa.string()),
        },
        schema=LEARNED,
    )
    if earlier is None or not goes_on:
        return learned
    past = earlier.filter(pc.invert(pc.is_in(earlier["content"], value_set=pa.array(contents))))
    age = pa.array(["past"] * past.num_rows, pa.string())
    place = LEARNED.get_field_index("age")
    return pa.concat_tables([learned, past.set_column(place, "age", age)])


def earlier_facts(learned: pa.Table) -> set[str] | None:
    """Return the facts that the promoted adapter had learned too; None where there was none."""
    ages = set(learned["age"].to_pylist())
    if "first" in ages:
        return None
    return set(learned.filter(pc.field("age") == "old")["fact_id"].to_pylist())


def warm_rows(
    rows: pa.Table,
    learned: pa.Table,
    stated: pa.Table,
    replay_share: float,
    seed: int,
    start: str,
) -> WarmRows:
    """Return what an adapter that has learned `learned` is tuned on, to know `rows`.

    Every row that it has not learned, and earlier ones: `replay_share` of the rows then, or as many
    as there are. Each row is seen in as many epochs as from scratch, so that the tokens are
    ``sum(n_tokens * epochs)`` over them, what the whole recipe would spend on these rows.
    Earlier rows are drawn so that kinds keep their proportions and every fact is seen in one
    wording before any is seen in two.

    Args:
        rows: table training_rows.
        stated: `statements` of the corpus as it is now, those that the time budget has left out
            too.
        start: the adapter's content hash: each re-tuning draws anew.

    Raises:
        StartFromScratch: no row is new, a statement that was learned is withdrawn, or the rows
            would take more than MAX_TOKENS of the tokens of a training from scratch.
    """
    withdrawn = _withdrawn(learned.filter(pc.field("statement")), stated)
    if withdrawn:
        raise StartFromScratch(
            f"{withdrawn} rows that the promoted adapter has learned say what the corpus says no "
            "longer, and tuning does not unlearn"
        )
    known = np.isin(row_contents(rows), learned["content"].to_pylist())
    new, old = np.flatnonzero(~known), np.flatnonzero(known)
    if not len(new):
        raise StartFromScratch("no row is new to the promoted adapter")
    wanted = int(np.ceil(len(new) * replay_share / (1 - replay_share)))
    replayed = old[_spread(rows.take(pa.array(old)), seed, start)[:wanted]]
    taken = np.sort(np.concatenate([new, replayed]))
    cost = np.asarray(rows["n_tokens"]) * np.asarray(rows["epochs"])
    share = cost[taken].sum() / cost.sum()
    if share > MAX_TOKENS:
        raise StartFromScratch(
            f"{len(new)} of {rows.num_rows} rows are new or changed: with the replay of earlier "
            f"ones {share:.0%} of the tokens of a training from scratch"
        )
    return WarmRows(rows.take(pa.array(taken)), len(new), len(replayed))


def _withdrawn(learned: pa.Table, stated: pa.Table) -> int:
    """Count the learned rows whose answer is given no longer, or whose question has another one."""
    answers, questions = _hashes(stated["answer"]), _hashes(stated["question"])
    given = pc.is_in(learned["answer"], value_set=answers)
    now = answers.take(pc.index_in(learned["prompt"], value_set=questions))
    stands = pc.and_(given, pc.fill_null(pc.equal(now, learned["answer"]), True))
    return int(np.count_nonzero(~np.asarray(stands)))


def _hashes(texts: Iterable[pa.StringScalar]) -> pa.Array:
    return pa.array([content_id("text", text.as_py()) for text in texts], pa.string())


def _spread(rows: pa.Table, seed: int, start: str) -> np.ndarray:
    """Return the places of `rows` in the order in which they are replayed; int64 of shape (n,)."""
    ids, facts, kinds = (rows[name].to_pylist() for name in ("id", "fact_id", "kind"))
    row_draw = np.array([seeded_int(seed, "replay", start, each) for each in ids], np.uint64)
    fact_draw = np.array([seeded_int(seed, "replay", start, each) for each in facts], np.uint64)
    of_fact = _turns(np.unique(facts, return_inverse=True)[1], np.lexsort((row_draw,)))
    kind = np.unique(kinds, return_inverse=True)[1]
    # A kind's rows in turns of one wording a fact; the first tenth of each kind comes before the
    # second tenth of any.
    of_kind = _turns(kind, np.lexsort((row_draw, fact_draw, of_fact)))
    part = (of_kind + 0.5) / np.bincount(kind)[kind]
    order: np.ndarray = np.lexsort((row_draw, part))
    return order


def _turns(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return for each item how many of its group stand before it in `order`."""
    ordered = order[np.argsort(group[order], kind="stable")]
    starts = np.searchsorted(group[ordered], np.arange(group.max(initial=-1) + 1))
    turn = np.empty(len(group), dtype=np.int64)
    turn[ordered] = np.arange(len(group)) - starts[group[ordered]]
    return turn
