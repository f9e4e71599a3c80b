"""Promoting an adapter, by itself or by hand, rolling back, and what becomes of the others.

What the gate compares a new adapter with is kept of each stored one in
<home>/adapters/<corpus>/numbers.json: ids of questions and facts, question sets, scores, the loss
on general text, coverage. It holds no text of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.gate import SETS, Numbers, Question, Verdict, gate, numbers_of
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.partitions import VERSION_TAG
from ragtuned_pipeline.orchestration.promotion_history import (
    COMMAND_LINE,
    Entry,
    PromotionError,
    What,
)
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline.tuning import adapter_store

# Stages behind the adapter and its scores: what failed, the items, the teacher's calls where it was
# asked, and whether the items are those that did not fail. The judge is not among them: the gate
# reads no verdict.
_STAGES = {
    "documents": ("documents_failures", "documents", None, True),
    "text_units": ("graph_failures", "text_units", "graph_usage", False),
    "community_reports": ("reports_failures", "communities", "reports_usage", False),
    "qa_pairs": ("synthesis_failures", "qa_pairs", "synthesis_usage", True),
    "answers_tuned": ("answers_tuned_failures", "queries", None, False),
    "answers_base": ("answers_base_failures", "queries", None, False),
}
_DECISIONS = 5  # of the history, in the report

Result = Literal["promoted", "refused", "set aside", "unchanged"]


@dataclass(frozen=True)
class Outcome:
    """What came of an adapter.

    `what` is "promoted", "refused", "set aside" (a person chose another one) or "unchanged" (it
    answers already); `sentence` says it in words. `history` is that of the corpus, with it.
    """

    what: Result
    adapter: str
    previous: str | None
    verdict: Verdict
    history: tuple[Entry, ...]
    sentence: str


def promote_trained(home: Home, corpus: str, run: str) -> Outcome:
    """Promote the last trained adapter if the gate lets it pass and no person has set it aside.

    One that was set aside is promoted where none answers: after a document was forgotten, equal
    rows give equal weights again.

    Args:
        run: id of Dagster's run, for the history.

    Raises:
        PromotionError: the scorecard is not that of the last trained adapter.
    """
    with past.locked(home, corpus) as entries:
        new = judged(home, corpus)
        aside = new.adapter in past.set_aside(entries)
        return _decide(home, corpus, entries, new.adapter, new, run, aside=aside)


def promote_by_hand(home: Home, corpus: str, adapter: str | None, force: bool) -> Outcome:
    """Promote an adapter because a person says so.

    Args:
        adapter: None for the last trained one.
        force: in spite of the gate.

    Raises:
        PromotionError: there is no such adapter, or nothing to judge it by (without `force`).
        AdapterError: it is not stored, or belongs to another base model.
    """
    with past.locked(home, corpus) as entries:
        chosen = adapter or _trained(home, corpus)
        if chosen is None:
            raise PromotionError(f"corpus {corpus!r} has no adapter yet; run `ragtuned run` first")
        base_model = home.settings(corpus).tuning.base_model
        adapter_store.find(home.adapters, corpus, chosen, base_model)
        numbers = _numbers_by_hand(home, corpus, chosen, force)
        return _decide(home, corpus, entries, chosen, numbers, COMMAND_LINE, force=force)


def _decide(
    home: Home,
    corpus: str,
    entries: tuple[Entry, ...],
    adapter: str,
    numbers: Numbers | None,
    run: str,
    *,
    aside: bool = False,
    force: bool = False,
) -> Outcome:
    """Ask the gate, and write and do what comes of it."""
    verdict = verdict_on(home, corpus, numbers) if numbers else Verdict(())
    if numbers:
        _write_numbers(home, corpus, kept_numbers(home, corpus) | {adapter: numbers})
    previous = adapter_store.promoted(home.adapters, corpus)

    def outcome(what: Result, sentence: str, history: tuple[Entry, ...] = entries) -> Outcome:
        return Outcome(what, adapter, previous, verdict, history, sentence)

    if adapter == previous:
        return outcome("unchanged", f"adapter {adapter} answers already")
    if aside and previous:
        return outcome("set aside", past.set_aside_sentence(corpus, adapter))
    if verdict.reasons and not force:
        entry = _entry(home, corpus, "refused", adapter, numbers, run, verdict.reasons)
        sentence = f"adapter {adapter} is not promoted: {'; '.join(verdict.reasons)}"
        return outcome("refused", sentence, _refused(home, corpus, entries, entry))
    what: What = "promoted by hand" if run == COMMAND_LINE else "promoted"
    entry = _entry(home, corpus, what, adapter, numbers, run, verdict.reasons)
    return outcome(
        "promoted", f"adapter {adapter} answers now", _move(home, corpus, entries, entry)
    )


def roll_back(home: Home, corpus: str, adapter: str | None) -> Entry:
    """Let an earlier adapter answer again; return the entry.

    Args:
        adapter: one that answered before; None for the one before that which answers now.

    Raises:
        PromotionError: there is no such adapter.
        AdapterError: it belongs to another base model.
    """
    with past.locked(home, corpus) as entries:
        previous = adapter_store.promoted(home.adapters, corpus)
        if previous is None:
            raise PromotionError(f"corpus {corpus!r} has no promoted adapter: nothing to roll back")
        on_disk = adapter_store.stored(home.adapters, corpus)
        chosen = adapter
        if chosen is None:
            chosen = next((each for each in past.before(entries) if each in on_disk), None)
        if chosen is None:
            raise PromotionError(
                f"corpus {corpus!r} has no adapter before {previous} in its history that is still "
                "stored; `ragtuned promote` chooses any stored one"
            )
        if chosen == previous:
            raise PromotionError(f"adapter {chosen} answers for {corpus!r} already")
        base_model = home.settings(corpus).tuning.base_model
        adapter_store.find(home.adapters, corpus, chosen, base_model)
        if chosen not in past.earlier(entries):
            raise PromotionError(
                f"adapter {chosen} has never answered for {corpus!r}; "
                f"`ragtuned promote {corpus} {chosen}` promotes it"
            )
        numbers = kept_numbers(home, corpus).get(chosen)
        entry = _entry(home, corpus, "rolled back", chosen, numbers, COMMAND_LINE, ())
        past.append(home, corpus, entries, entry)
        return entry


def show_in_dagster(home: Home, corpus: str, entry: Entry) -> None:
    """Let Dagster's lineage show what a person decided: the asset promoted_adapter is another."""
    import dagster as dg

    from ragtuned_pipeline.orchestration.runs import open_instance

    with open_instance(home) as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                "promoted_adapter",
                description=f"{entry.what} by `ragtuned`, before: {entry.left or 'none'}",
                partition=corpus,
                tags={VERSION_TAG: entry.adapter},
            )
        )


def verdict_on(home: Home, corpus: str, new: Numbers) -> Verdict:
    """Return the gate's verdict on an adapter beside the one that answers.

    One that answers itself is compared with its base alone; so is any where the numbers of the one
    that answers are not kept, and the verdict says so.
    """
    promoted = adapter_store.promoted(home.adapters, corpus)
    return _verdict_beside(home, corpus, new, promoted if promoted != new.adapter else None)


def _verdict_beside(home: Home, corpus: str, new: Numbers, other: str | None) -> Verdict:
    checks = home.settings(corpus).checks
    if other is None:
        return gate(new, None, checks)
    beside = kept_numbers(home, corpus).get(other)
    verdict = gate(new, beside, checks)
    if beside is not None:
        return verdict
    alone = f"no numbers of the promoted adapter {other} are kept: compared with the base only"
    return replace(verdict, alone=alone)


def report_of_promotion(home: Home, corpus: str) -> dict[str, Any]:
    """Return what the report shows of promotion, as plain values: what answers, the gate's verdict
    on the last trained adapter, and the last decisions, the latest first.

    The verdict is beside the adapter that answers or, where the trained one does already, that
    answered before it: in a run the page may be written before or after the promotion.

    Raises:
        PromotionError: the history is damaged.
    """
    entries = past.history(home, corpus)
    promoted = adapter_store.promoted(home.adapters, corpus)
    try:
        new = judged(home, corpus)
        before = promoted if promoted != new.adapter else next(iter(past.earlier(entries)), None)
        verdict = _verdict_beside(home, corpus, new, before)
    except PromotionError as error:
        verdict = Verdict((), str(error))
    return {
        "answers": promoted,
        "trained": _trained(home, corpus),
        "compared": [asdict(each) for each in verdict.compared],
        "reasons": verdict.reasons,
        "remarks": verdict.remarks,
        "decisions": [asdict(entry) for entry in reversed(entries[-_DECISIONS:])],
    }


def judged(home: Home, corpus: str) -> Numbers:
    """Return the numbers of the last trained adapter, from its scorecard and the tables behind it.

    Raises:
        PromotionError: they are not there, or belong to another adapter or other questions.
    """
    file = home.report(corpus) / "scorecard.json"
    trained, store = _trained(home, corpus), TableStore(home.tables)
    if trained is None or not file.is_file():
        raise PromotionError(f"corpus {corpus!r} has no scorecard yet; run the evaluation first")
    scorecard = json.loads(file.read_text(encoding="utf-8"))
    queries, versions = store.read("queries", corpus), scorecard["versions"]
    made_with = versions.get("adapter"), versions["data queries"]
    if made_with != (trained, content_hash(queries)):
        raise PromotionError(
            f"{file} is not that of adapter {trained} and the questions of now; "
            f"run `ragtuned evaluate {corpus}`"
        )
    answers = store.read("answers", corpus)
    return numbers_of(scorecard, queries, answers, failed_items(store, corpus))


def failed_items(store: TableStore, corpus: str) -> dict[str, tuple[int, int]]:
    """Return stage -> (items that failed, items), as the checks failures_share count them."""
    found: dict[str, tuple[int, int]] = {}
    for stage, (failures, items, usage, others) in _STAGES.items():
        failed, count = (store.row_count(name, corpus) or 0 for name in (failures, items))
        calls = store.read(usage, corpus) if usage and store.exists(usage, corpus) else None
        if calls is not None and calls.num_rows:
            found[stage] = pc.sum(calls["failed"]).as_py(), pc.sum(calls["calls"]).as_py()
        else:
            found[stage] = failed, count + (failed if others else 0)
    return found


def _trained(home: Home, corpus: str) -> str | None:
    training = read_training(home, corpus, "tuned")
    return training.adapter if training else None


def _numbers_by_hand(home: Home, corpus: str, adapter: str, force: bool) -> Numbers | None:
    if adapter == _trained(home, corpus):
        try:
            return judged(home, corpus)
        except PromotionError:
            if not force:
                raise
    numbers = kept_numbers(home, corpus).get(adapter)
    if numbers is None and not force:
        raise PromotionError(
            f"adapter {adapter} of {corpus!r} was never judged, or its numbers were not kept; "
            "--force promotes it all the same"
        )
    return numbers


def _entry(
    home: Home,
    corpus: str,
    what: What,
    adapter: str,
    numbers: Numbers | None,
    run: str,
    reasons: Sequence[str],
) -> Entry:
    return Entry(
        what=what,
        adapter=adapter,
        left=adapter_store.promoted(home.adapters, corpus),
        trained=_trained(home, corpus),
        when=past.now(),
        run=run,
        data_version=numbers.data_version if numbers else "",
        numbers=_headline(numbers) if numbers else {},
        reasons=tuple(reasons),
    )


def _headline(numbers: Numbers) -> dict[str, float]:
    found = {name: numbers.share(name) for name in SETS}
    found |= {"general_loss": numbers.general_loss, "coverage": numbers.coverage}
    return {name: round(value, 6) for name, value in found.items() if value is not None}


def _refused(
    home: Home, corpus: str, entries: tuple[Entry, ...], entry: Entry
) -> tuple[Entry, ...]:
    """Write a refusal, unless it is the last one again: every night would add one."""
    last = entries[-1] if entries else None
    same = last and (last.what, last.adapter, last.reasons) == (
        entry.what,
        entry.adapter,
        entry.reasons,
    )
    return entries if same else past.append(home, corpus, entries, entry)


def _move(home: Home, corpus: str, entries: tuple[Entry, ...], entry: Entry) -> tuple[Entry, ...]:
    """Promote, then delete the adapters that nothing leads back to."""
    written = past.append(home, corpus, entries, entry)
    kept = {
        entry.adapter,
        *past.earlier(written)[: home.settings(corpus).promotion.keep_adapters],
        *_recorded(home.adapters / corpus),
    }
    answered = {entry.adapter, *past.earlier(written)}
    never = (each.adapter for each in reversed(written) if each.adapter not in answered)
    kept.update(list(dict.fromkeys(never))[:1])
    for adapter in adapter_store.stored(home.adapters, corpus):
        if adapter not in kept:
            adapter_store.delete(home.adapters, corpus, adapter)
    _write_numbers(home, corpus, {k: v for k, v in kept_numbers(home, corpus).items() if k in kept})
    return written


def _recorded(folder: Path) -> set[str]:
    """The adapters of the last trainings: tuned.json, control.json, ablation_<variant>.json."""
    files = [*folder.glob("ablation_*.json"), folder / "tuned.json", folder / "control.json"]
    return {
        json.loads(file.read_text(encoding="utf-8"))["adapter"] for file in files if file.is_file()
    }


def kept_numbers(home: Home, corpus: str) -> dict[str, Numbers]:
    """Return the numbers that are kept, by adapter; without those that another version of this
    package has kept in other fields."""
    file = _numbers_file(home, corpus)
    if not file.is_file():
        return {}
    rows: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    read = {adapter: _numbers(row) for adapter, row in rows.items()}
    return {adapter: numbers for adapter, numbers in read.items() if numbers is not None}


def _numbers(row: Mapping[str, Any]) -> Numbers | None:
    try:
        questions = tuple(Question(**each) for each in row["questions"])
        failed = {stage: tuple(counts) for stage, counts in row["failed"].items()}
        return Numbers(**{**row, "questions": questions, "failed": failed})
    except (AttributeError, KeyError, TypeError):  # fields that they do not have, or no longer
        return None


def _write_numbers(home: Home, corpus: str, numbers: Mapping[str, Numbers]) -> None:
    rows = {adapter: asdict(each) for adapter, each in sorted(numbers.items())}
    write_text(_numbers_file(home, corpus), json.dumps(rows, sort_keys=True) + "\n")


def _numbers_file(home: Home, corpus: str) -> Path:
    return home.adapters / corpus / "numbers.json"
