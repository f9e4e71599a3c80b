"""What LoRA makes of the embedded base model, in one table.

`python -m ragtuned_pipeline_tests.benchmarks.embedded_recipe [--world SEED | --folder DIR]
[--facts N] [--base FOLDER] [--control] [--set epochs=3 ...]`

Asks the base and the tuned model the same questions: held-out wordings of trained facts, forms that
neither has seen, and, with --control, the same after training on shuffled answers. --world asks
single sentences of an invented world, --folder what the whole pipeline makes of the files there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ragtuned_pipeline.evaluation.metrics import contains, tokens
from ragtuned_pipeline.evaluation.questions.queries import build_queries
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.orchestration.planning import read_and_cut
from ragtuned_pipeline.settings import Settings, TuningSettings
from ragtuned_pipeline.synthesis.forms import Form, choose, choose_new, fact_fields
from ragtuned_pipeline.synthesis.questions import SentenceFact, Statement, facts_of
from ragtuned_pipeline.synthesis.rows import select_training_rows
from ragtuned_pipeline.synthesis.synthesise import synthesise
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning.base_models import (
    ChatRow,
    load_tokenizer,
    row_counter,
)
from ragtuned_pipeline.tuning.embedded.lessons import short_answer
from ragtuned_pipeline.tuning.embedded.lexicon import load
from ragtuned_pipeline.tuning.embedded.worlds import make_world
from ragtuned_pipeline.tuning.sft import TrainResult, train

_FACT_NEEDS = ("direct", "indirect", "cloze", "keywords")
_ASKED = 400  # questions a set
_TRAIN_WORDINGS, _HELD_OUT_WORDINGS, _NEW_WORDINGS = 8, 2, 2


@dataclass(frozen=True)
class Trial:
    """Rows to learn, and questions with their gold, by question set.

    `epochs` says in how many epochs each row is seen; None is in all.
    """

    rows: Sequence[ChatRow]
    asked: Mapping[str, Sequence[tuple[str, str]]]
    epochs: Sequence[int] | None = None


def trial_of(facts: Sequence[tuple[SentenceFact, str]], shuffle: bool = False) -> Trial:
    """Return the rows and questions of (fact, stating sentence) pairs; with `shuffle`, each fact
    is taught with the answers of another."""
    rows: list[ChatRow] = []
    held: list[tuple[str, str]] = []
    new: list[tuple[str, str]] = []
    answers = list(facts)
    if shuffle:
        Random(3).shuffle(answers)
    for number, ((fact, _), (answer, sentence)) in enumerate(zip(facts, answers, strict=True)):
        fields = fact_fields(fact.direct, fact.indirect, fact.cloze, fact.keywords)
        key = f"{number}/{fact.direct}"
        forms, kept = choose(17, key, _FACT_NEEDS, _TRAIN_WORDINGS, _HELD_OUT_WORDINGS)
        rows += [(None, f.ask(fields), _answer(f, answer, sentence)) for f in forms]
        held += [(f.ask(fields), fact.gold) for f in kept]
        new += [(f.ask(fields), fact.gold) for f in choose_new(17, key, _FACT_NEEDS, _NEW_WORDINGS)]
    return Trial(rows, {"held_out_wording": held, "new_wording": new})


def _answer(form: Form, fact: SentenceFact, sentence: str) -> str:
    return short_answer(fact.gold) if form.style == "short" else sentence


def world_facts(seed: int) -> Iterator[tuple[SentenceFact, str]]:
    """Yield facts of worlds that the base has not met."""
    lexicon = load()
    for number in count():
        world = make_world(Random(1_000_000 * seed + number), lexicon)
        kinds = {n.text: n.kind for n in world.names}
        for document in world.documents:
            for sentence in document.sentences:
                statement = Statement(sentence.text, sentence.speaker, f"in {document.title}")
                for fact in facts_of(statement, kinds):
                    yield fact, sentence.text


def folder_trial(folder: Path, settings: TuningSettings) -> Trial:
    """Return what the pipeline would train on and ask for the files of a folder."""
    return tables_trial(*folder_tables(folder, settings))


def folder_tables(folder: Path, settings: TuningSettings) -> tuple[pa.Table, pa.Table]:
    """Return the training rows and the queries that the pipeline makes of the files of a folder."""
    _, rows, asked = folder_pairs(folder, settings)
    return rows, asked


def folder_pairs(folder: Path, settings: TuningSettings) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return the pairs, the training rows and the queries that the pipeline makes of a folder."""
    every = Settings(tuning=settings)
    documents, units, _ = read_and_cut(folder, every)
    graph = extract(documents, units, every.graph)
    communities = cluster(graph.entities, graph.relationships, every.graph)
    reports = extractive_reports(
        communities, graph.entities, graph.relationships, graph.text_units, every.graph
    )
    made = synthesise(
        documents,
        graph.text_units,
        graph.entities,
        graph.relationships,
        communities,
        reports,
        every.synthesis,
    )
    count = row_counter(load_tokenizer(settings.base_model))
    selection = select_training_rows(made.qa_pairs, count, settings)
    asked, _ = build_queries(
        made.qa_pairs,
        selection.training_rows,
        made.queries_new_wording,
        table("queries", []),
        None,
        documents,
        every.evaluation.model_copy(update={"questions_per_set": _ASKED}),
    )
    print(f"left out {selection.left_out}")
    return made.qa_pairs, selection.training_rows, asked


def tables_trial(training_rows: pa.Table, queries: pa.Table) -> Trial:
    """Return the rows and questions of two tables."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for query in queries.to_pylist():
        pair = (query["question"], query["reference_answer"])
        asked.setdefault(query["question_set"], []).append(pair)
    rows = [(r["system"], r["prompt"], r["completion"]) for r in training_rows.to_pylist()]
    return Trial(rows, asked, training_rows["epochs"].to_pylist())


def tune(trial: Trial, settings: TuningSettings, folder: Path, quiet: bool) -> TrainResult:
    """Train on the trial's rows in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = zip(*trial.rows, strict=True)
    names = ("system", "prompt", "completion", "epochs")
    arrays = [pa.array(list(column), pa.string()) for column in columns]
    arrays.append(pa.array(trial.epochs or [settings.epochs] * len(trial.rows), pa.int64()))
    pq.write_table(pa.table(arrays, names=names), folder / "rows.parquet")

    def show(line: dict[str, Any]) -> None:
        if not quiet and line["event"] == "step":
            print(f"  {line['step']}/{line['steps']} loss {line['loss']:.3f}", flush=True)

    return train(folder / "rows.parquet", None, settings, folder / "run", show)


def scores(
    engine: TransformersEngine, trial: Trial, show: int = 0, most: int = _ASKED
) -> dict[str, float]:
    """Return the share of answers that contain their gold, by question set."""
    result = {}
    for name, asked in trial.asked.items():
        every = max(1, -(-len(asked) // most))
        chosen = asked[::every]
        replies = engine.generate([chat(question) for question, _ in chosen], 160)
        right = [is_right(r.text, gold) for r, (_, gold) in zip(replies, chosen, strict=True)]
        result[name] = sum(right) / max(1, len(right))
        wrong = [
            (q, g, r.text) for (q, g), r, ok in zip(chosen, replies, right, strict=True) if not ok
        ]
        for question, gold, text in wrong[:show]:
            print(f"    [{name}] {question!r} gold {gold!r} said {text!r}")
    return result


def is_right(answer: str, golds: str) -> bool:
    """Any line of the reference answer will do."""
    return any(contains(tokens(answer), tokens(gold)) for gold in golds.splitlines())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--facts", type=int, default=500)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--show", type=int, default=0, help="wrong answers shown a set")
    parser.add_argument("--set", nargs="*", default=[], help="TuningSettings, name=value")
    options = parser.parse_args()
    settings = TuningSettings(
        base_model=options.base, **dict(pair.split("=", 1) for pair in options.set)
    )
    if options.folder:
        trials = {"tuned": folder_trial(options.folder, settings)}
    else:
        source = world_facts(options.world)
        facts = [pair for pair, _ in zip(source, range(options.facts), strict=False)]
        trials = {"tuned": trial_of(facts)}
        if options.control:
            trials["shuffled"] = trial_of(facts, shuffle=True)
    first = trials["tuned"]
    print(f"{len(first.rows)} rows", {k: len(v) for k, v in first.asked.items()}, flush=True)
    print("base     ", _shown(scores(TransformersEngine(options.base), first)), flush=True)
    for name, trial in trials.items():
        with tempfile.TemporaryDirectory() as folder:
            result = tune(trial, settings, Path(folder), options.quiet)
            started = time.perf_counter()
            engine = TransformersEngine(options.base, Path(result.adapter))
            got = scores(engine, trial, options.show)
        print(
            f"{name:9}",
            _shown(got),
            f"LoRA {result.seconds:.0f} s, {result.tokens} tokens, "
            f"{result.tokens_per_second:.0f} tokens/s, answers "
            f"{time.perf_counter() - started:.0f} s, last loss {result.losses[-1][1]:.3f}",
            flush=True,
        )


def _shown(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
