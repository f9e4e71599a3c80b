"""What a corpus holds, read from its files alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.settings import SettingsError, check_corpus_name
from ragtuned_pipeline.tuning import adapter_store

_COUNTED = (
    "documents",
    "text_units",
    "entities",
    "relationships",
    "communities",
    "qa_pairs",
    "training_rows",
    "queries",
    "failures",
)


def home_status(home: Home) -> tuple[list[dict[str, Any]], list[str]]:
    """Return `corpus_status` of every corpus, and a sentence on each folder in corpora/ whose name
    is no corpus's.

    Raises:
        PromotionError: the history of promotions of one is damaged.
    """
    found, misnamed = [], []
    for name in home.names():
        try:
            check_corpus_name(name)
        except SettingsError as error:
            misnamed.append(f"{home.corpora / name} is no corpus: {error}")
        else:
            found.append(corpus_status(home, name))
    return found, misnamed


def corpus_status(home: Home, corpus: str) -> dict[str, Any]:
    """Return counts, adapters, scorecard and where the report is; null where not made yet.

    `forgetting` and `set_aside` are sentences, null where there is nothing to say.

    Raises:
        PromotionError: the history of promotions is damaged.
    """
    store = TableStore(home.tables)
    training = read_training(home, corpus, "tuned")
    trained = training.adapter if training else None
    history = past.history(home, corpus)
    promoted = adapter_store.promoted(home.adapters, corpus)
    scorecard = _read_json(home.report(corpus) / "scorecard.json")
    report = home.report(corpus) / "index.html"
    return {
        "corpus": corpus,
        "folder": str((home.corpora / corpus).resolve()),
        "rows": {name: store.row_count(name, corpus) for name in _COUNTED},
        "teacher": _teacher_usage(home, corpus),
        "trained_adapter": trained,
        "training_seconds": training.result["seconds"] if training else None,
        "promoted_adapter": promoted,
        "promotion_refused": past.refusal(history, trained, promoted),
        "set_aside": past.set_aside_sentence(corpus, trained)
        if promoted and trained is not None and trained in past.set_aside(history)
        else None,
        "forgetting": _forgetting(home, corpus),
        "history": [asdict(entry) for entry in history],
        "scorecard": scorecard,
        "report": str(report) if report.is_file() else None,
    }


def _forgetting(home: Home, corpus: str) -> str | None:
    from ragtuned_pipeline.orchestration.forgetting import CannotForget, unfinished_forgetting

    try:
        unfinished = unfinished_forgetting(home, corpus)
    except CannotForget as error:
        return str(error)
    if unfinished is None:
        return None
    return (
        f"forgetting {unfinished.document or 'what is gone'} is unfinished: "
        f"`ragtuned forget {corpus}` finishes it"
    )


def _teacher_usage(home: Home, corpus: str) -> dict[str, dict[str, Any]]:
    """What all runs of the corpus have asked and spent, by step."""
    from ragtuned_pipeline.inference.completions import CompletionStore

    if not home.completions.is_file():
        return {}
    with CompletionStore(home.completions) as store:
        return {step: asdict(usage) for step, usage in store.corpus_usage(corpus).items()}


def _read_json(file: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
