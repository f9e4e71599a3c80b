"""What a re-tuning makes of new facts and of old ones: from scratch, and warm with replay.

    python -m ragtuned_pipeline_tests.benchmarks.retuning [--minutes 1] [--without 3]
        [--seeds 42 43] [--replay 0 0.5 0.8] [--rates 0.5] [--edits] [--deletion]

The embedded model is tuned on the news sample without some of its documents, then again on all of
it in each way. The questions are held-out and new wordings of facts of the whole sample, new and
old ones apart. Printed beside them: tokens, seconds, and the probe's losses on general text and on
forms known from pretraining (nats a token).

--deletion: how many facts of documents that are gone are still answered.
--edits: after the numbers in some documents have changed, how many answers tell the new numbers,
and how many the old ones.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ragtuned_pipeline.evaluation.probe import built_in
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import EMBEDDED_MODEL, TuningSettings
from ragtuned_pipeline.synthesis.facts import LOCAL
from ragtuned_pipeline.tuning import sft
from ragtuned_pipeline.tuning.warm_start import earlier_facts, learned_rows, statements, warm_rows
from ragtuned_pipeline_tests.benchmarks.embedded_recipe import folder_pairs, is_right

NEWS = Path(__file__).parents[2] / "ragtuned_pipeline" / "samples" / "news" / "documents"
ANSWER_TOKENS = 160
HEAD_LINES = 4  # title, author and date, which every answer about a document may name
_ASKED = ("held_out_wording", "new_wording")


@dataclass(frozen=True)
class Corpus:
    """What is made of one folder; `stated` are its statements."""

    rows: pa.Table
    queries: pa.Table
    stated: pa.Table

    @classmethod
    def of(cls, folder: Path, settings: TuningSettings) -> Corpus:
        pairs, rows, queries = folder_pairs(folder, settings)
        asked = queries.filter(pc.field("question_set").isin(_ASKED))
        return cls(rows, asked, statements(pairs))

    def learned(self) -> pa.Table:
        """What an adapter tuned on it from scratch has learned."""
        return learned_rows(self.rows, self.stated, None, goes_on=False)


@dataclass(frozen=True)
class Way:
    """A warm start: the share of replay, and of the learning rate."""

    replay: float
    rate: float

    def __str__(self) -> str:
        return f"warm, replay {self.replay:g}, rate {self.rate:g}"


class Bench:
    """Trainings of one seed, in a folder of their own."""

    def __init__(self, folder: Path, settings: TuningSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._made = 0

    def tune(
        self, rows: pa.Table, start: Path | None = None, rate: float = sft.WARM_RATE
    ) -> sft.TrainResult:
        """Train on `rows` in a new folder; from `start`, at `rate` of the learning rate."""
        self._made += 1
        folder = self._folder / str(self._made)
        folder.mkdir()
        pq.write_table(rows, folder / "rows.parquet")
        # The trainer takes WARM_RATE of it by itself.
        share = rate / sft.WARM_RATE if start else 1.0
        settings = self._settings.model_copy(
            update={"learning_rate": self._settings.learning_rate * share}
        )
        return sft.train(
            folder / "rows.parquet", None, settings, folder / "run", lambda _: None, start
        )

    def again(self, way: Way, before: Corpus, after: Corpus, adapter: Path) -> sft.TrainResult:
        """Go on from `adapter`, which was tuned on `before`, to `after`."""
        # Whether a warm start is to be allowed is the question: here nothing counts as withdrawn.
        learned = learned_rows(before.rows, before.stated.slice(0, 0), None, goes_on=False)
        seed = self._settings.seed
        chosen = warm_rows(after.rows, learned, after.stated, way.replay, seed, adapter.name)
        print(f"    {chosen.new} rows new or changed, {chosen.replayed} replayed", flush=True)
        return self.tune(chosen.rows, adapter, way.rate)


def ask(adapter: Path, queries: pa.Table) -> list[str]:
    """Return the adapter's answers."""
    engine = TransformersEngine(EMBEDDED_MODEL, adapter)
    asked = [chat(question) for question in queries["question"].to_pylist()]
    answers = [reply.text for reply in engine.generate(asked, ANSWER_TOKENS)]
    engine.close()
    return answers


def by_age(queries: pa.Table, answers: Sequence[str], old: set[str]) -> dict[str, float]:
    """Return the share of right answers by question set and age."""
    right: dict[str, list[bool]] = {}
    for query, answer in zip(queries.to_pylist(), answers, strict=True):
        age = "old" if query["fact_id"] in old else "new"
        key = f"{query['question_set']} {age}"
        right.setdefault(key, []).append(is_right(answer, query["reference_answer"]))
    return {key: sum(each) / len(each) for key, each in sorted(right.items())}


def general(adapter: Path) -> dict[str, float]:
    """Return the probe's losses, the mean of each suite."""
    rows = built_in.score(EMBEDDED_MODEL, adapter, "tuned")
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["suite"] in ("language_loss", "known_forms"):
            found.setdefault(row["suite"], []).append(row["score"])
    return {suite: sum(each) / len(each) for suite, each in sorted(found.items())}


def show(way: str, result: sft.TrainResult, figures: Mapping[str, float]) -> None:
    """Print one line."""
    told = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"  {way:30} {result.tokens:>9,} tokens {result.seconds:>6.0f} s  {told}", flush=True)


def addition(
    bench: Bench, less: Corpus, whole: Corpus, ways: list[Way]
) -> tuple[sft.TrainResult, sft.TrainResult]:
    """Print what becomes of new and of old facts when documents are added.

    Returns:
        The trainings from scratch, without the documents and with them.
    """
    ages = learned_rows(whole.rows, whole.stated, less.learned(), goes_on=False)
    old = earlier_facts(ages) or set()
    of_old = sum(fact in old for fact in whole.queries["fact_id"].to_pylist())
    print(
        f"addition: {less.rows.num_rows} rows, then {whole.rows.num_rows}; {of_old} questions "
        f"about old facts, {whole.queries.num_rows - of_old} about new ones",
        flush=True,
    )

    def told(way: str, result: sft.TrainResult) -> sft.TrainResult:
        adapter = Path(result.adapter)
        figures = by_age(whole.queries, ask(adapter, whole.queries), old)
        show(way, result, figures | general(adapter))
        return result

    before = told("before", bench.tune(less.rows))
    scratch = told("scratch", bench.tune(whole.rows))
    for way in ways:
        told(str(way), bench.again(way, less, whole, Path(before.adapter)))
    return before, scratch


def deletion(
    bench: Bench,
    whole: Corpus,
    less: Corpus,
    before: sft.TrainResult,
    scratch: sft.TrainResult,
    ways: list[Way],
) -> None:
    """Print how many facts of deleted documents are still answered.

    Args:
        before: tuned on `whole`; `scratch` on `less`.
    """
    kept = less.queries["fact_id"].to_pylist() + less.rows["fact_id"].to_pylist()
    gone = whole.queries.filter(
        (pc.field("kind") == LOCAL) & ~pc.field("fact_id").isin(sorted(set(kept)))
    )
    print(f"deletion: {gone.num_rows} questions about what is gone, answered as before", flush=True)
    made = [("before", before), ("scratch", scratch)]
    made += [(str(way), bench.again(way, whole, less, Path(before.adapter))) for way in ways]
    for way, result in made:
        show(way, result, by_age(gone, ask(Path(result.adapter), gone), set()))


def edits(
    bench: Bench, whole: Corpus, edited: Corpus, before: sft.TrainResult, ways: list[Way]
) -> None:
    """Print how many answers about changed numbers tell the new ones, and how many the old.

    Args:
        before: tuned on `whole`.
    """
    earlier = {row["question"]: row["reference_answer"] for row in whole.queries.to_pylist()}
    changed = [
        row["question"] in earlier and earlier[row["question"]] != row["reference_answer"]
        for row in edited.queries.to_pylist()
    ]
    asked = edited.queries.filter(pa.array(changed, pa.bool_()))
    print(f"edits: {asked.num_rows} questions whose answer has changed", flush=True)
    made = [("before", before), ("scratch", bench.tune(edited.rows))]
    made += [(str(way), bench.again(way, whole, edited, Path(before.adapter))) for way in ways]
    for way, result in made:
        answers = ask(Path(result.adapter), asked)
        told = dict.fromkeys(("new", "old"), 0.0)
        for row, answer in zip(asked.to_pylist(), answers, strict=True):
            told["new"] += is_right(answer, row["reference_answer"]) / len(answers)
            told["old"] += is_right(answer, earlier[row["question"]]) / len(answers)
        show(way, result, told)


def copy_news(folder: Path, change: Callable[[Path], Any], places: set[int]) -> Path:
    """Return a copy of the sample, the documents at `places` changed."""
    shutil.copytree(NEWS, folder)
    for place, file in enumerate(sorted(folder.iterdir())):
        if place in places:
            change(file)
    return folder


def change_numbers(file: Path) -> None:
    """Make every number below the head of a document a larger one."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    body = "".join(lines[HEAD_LINES:])
    changed = re.sub(r"\b\d+\b", lambda found: str(int(found[0]) * 2 + 1), body)
    file.write_text("".join(lines[:HEAD_LINES]) + changed, encoding="utf-8")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="tuning.time_budget_minutes")
    parser.add_argument("--without", type=int, default=3, help="documents that come, go or change")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42, 43])
    parser.add_argument("--replay", type=float, nargs="*", default=[0.0, 0.5, 0.8])
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[sft.WARM_RATE], help="of the learning rate"
    )
    parser.add_argument("--deletion", action="store_true")
    parser.add_argument("--edits", action="store_true")
    options = parser.parse_args()
    settings = TuningSettings(time_budget_minutes=options.minutes, checkpoint_steps=100_000)
    ways = [Way(share, rate) for share in options.replay for rate in options.rates]
    step = len(list(NEWS.iterdir())) // options.without
    places = {place * step + step // 2 for place in range(options.without)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = Corpus.of(NEWS, settings)
        less = Corpus.of(copy_news(folder / "less", Path.unlink, places), settings)
        edited = Corpus.of(copy_news(folder / "edited", change_numbers, places), settings)
        for seed in options.seeds:
            print(f"seed {seed}", flush=True)
            (folder / str(seed)).mkdir()
            bench = Bench(folder / str(seed), settings.model_copy(update={"seed": seed}))
            without, with_all = addition(bench, less, whole, ways)
            if options.deletion:
                deletion(bench, whole, less, with_all, without, ways)
            if options.edits:
                edits(bench, whole, edited, with_all, ways)


if __name__ == "__main__":
    main()
