"""A corpus in the formats of other tools: its adapter, its training rows, its graph.

Each function is called with the corpus's lock held, so that no run changes in between what it
reads. Folders and files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.reporting.findings import SET_LABELS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET
from ragtuned_pipeline.files import temporary_name
from ragtuned_pipeline.graph.export import GRAPHRAG_TABLES, write_graphrag
from ragtuned_pipeline.inference.engine import system_message
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.forgetting import (
    CannotForget,
    interrupted_sentence,
    unfinished_forgetting,
)
from ragtuned_pipeline.orchestration.gate import SETS, Numbers
from ragtuned_pipeline.orchestration.home import Home, remove
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.lineage import scorecard_of
from ragtuned_pipeline.orchestration.promotions import kept_numbers
from ragtuned_pipeline.orchestration.training import Training, read_training
from ragtuned_pipeline.settings import EMBEDDED_MODEL
from ragtuned_pipeline.synthesis.export import lines
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline.tuning.export import (
    CannotExport,
    Merged,
    refuse_full_disk,
    stored_dtype,
    write_adapter,
    write_merged,
)
from ragtuned_pipeline.tuning.gguf import convert, find_converter
from ragtuned_pipeline.tuning.model_card import Base, Card, Score, TableVersion, model_card

_CARD = "README.md"
# What the card gives the versions of: where the adapter's rows come from, and the rows.
_DATA = (
    "documents",
    "text_units",
    "entities",
    "relationships",
    "community_reports",
    "training_rows",
)
# On a card "you" would be whoever reads it.
_SET_LABELS = SET_LABELS | {
    "gold_local": "people's questions about facts",
    "gold_global": "people's questions on the whole corpus",
}
_MEASURES = {
    "contains": "holds the right words",
    "f1": "word overlap with the reference (F1)",
    "refused": "declined, as is right",
}
_DECIDED = {
    "promoted": "The gate let it pass, and it was promoted",
    "promoted by hand": "A person promoted it",
    "refused": "The gate refused it",
    "rolled back": "A person went back to it",
}
_PACKAGES = ("ragtuned-pipeline", "torch", "transformers", "trl", "peft")
_GGUF_BYTES = 2  # of a weight


def refuse_unfinished_forgetting(home: Home, corpus: str) -> None:
    """Raise CannotExport where a document is being forgotten: it must not leave the home now."""
    try:
        unfinished = unfinished_forgetting(home, corpus)
    except CannotForget as error:
        raise CannotExport(str(error)) from None
    if unfinished is not None:
        raise CannotExport(interrupted_sentence(corpus, unfinished))


def training_lines(home: Home, corpus: str, form: str) -> list[str]:
    """Return the training rows as lines of JSON.

    Args:
        form: of `synthesis.export.FORMATS`.

    Raises:
        CannotExport: there are none yet.
    """
    rows = _tables(home, corpus, ("training_rows",))["training_rows"]
    return list(lines(rows, form))


def export_graphrag(home: Home, corpus: str, target: Path) -> str:
    """Write the folder of tables that GraphRAG reads; return a sentence on it.

    Raises:
        CannotExport: there is no graph yet, or the folder cannot be written.
    """
    tables = _tables(home, corpus, GRAPHRAG_TABLES)
    with new_folder(target) as folder:
        write_graphrag(tables, folder)
    counts = ", ".join(f"{tables[name].num_rows:,} {name}" for name in ("entities", "text_units"))
    return f"GraphRAG's {len(tables)} tables ({counts.replace('_', ' ')}) written to {target}"


def export_adapter(home: Home, corpus: str, target: Path, adapter: str | None) -> str:
    """Write an adapter's folder with its model card; return a sentence on it.

    Args:
        adapter: a stored one's content hash; None for the promoted one.

    Raises:
        AdapterError: it is not there, or belongs to another base model.
        CannotExport: the folder cannot be written.
    """
    found = _found(home, corpus, adapter)
    card = _card(home, corpus, found)
    with new_folder(target) as folder:
        write_adapter(found.folder, found.base_model, folder)
        (folder / _CARD).write_text(model_card(card), encoding="utf-8")
    return f"adapter {found.content} written to {target}"


def export_merged(
    home: Home,
    corpus: str,
    target: Path,
    adapter: str | None,
    dtype: str | None,
    tell: Callable[[str], None],
) -> str:
    """Write base and adapter as one model, with its card; return a sentence on it.

    Args:
        adapter: as of `export_adapter`.
        dtype: of the weights; None for that of the base model.
        tell: gets a line on what begins and may take minutes.

    Raises:
        AdapterError, CannotExport: as of `export_adapter`.
        SettingsError: the base model cannot be loaded.
    """
    found = _found(home, corpus, adapter)
    card = _card(home, corpus, found)
    chosen = dtype or stored_dtype(found.base_model)
    with new_folder(target) as folder:
        merged = write_merged(found.base_model, found.folder, folder, chosen, tell)
        text = model_card(replace(card, merged=merged))
        (folder / _CARD).write_text(text, encoding="utf-8")
    return f"base and adapter {found.content} merged into {target}, in {_rounded(merged)}"


def export_gguf(
    home: Home,
    corpus: str,
    target: Path,
    adapter: str | None,
    converter: Path | None,
    tell: Callable[[str], None],
) -> str:
    """Write base and adapter as one GGUF file; return a sentence on it.

    Args:
        adapter: as of `export_adapter`.
        converter: llama.cpp's; None to look for it.
        tell: as of `export_merged`.

    Raises:
        AdapterError, CannotExport: as of `export_adapter`, or there is no converter, or it fails.
        SettingsError: the base model cannot be loaded.
    """
    program = find_converter(converter)
    found = _found(home, corpus, adapter)
    with new_file(target) as file, _scratch_folder(target) as folder:
        merged = write_merged(found.base_model, found.folder, folder, "float32", tell)
        refuse_full_disk(file.parent, merged.parameters * _GGUF_BYTES)
        tell(f"converting it with {program}")
        header = convert(folder, file, program)
    return (
        f"base and adapter {found.content} written to {target}: GGUF version {header.version}, "
        f"{header.tensors} tensors"
    )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that takes the place of `target` when all went well.

    Raises:
        CannotExport: something is in `target`, or it cannot be written.
    """
    place = target.resolve()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise CannotExport(
            f"--output {target} is there and not empty; name another folder, or delete it first"
        )
    with _in_place_of(target) as building:
        _make(building, target)
        yield building


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the name of a file that takes the place of `target` when all went well.

    Raises:
        CannotExport: `target` is a folder, or it cannot be written.
    """
    if target.is_dir():
        raise CannotExport(f"--output {target} is a folder; name a file in it")
    with _in_place_of(target) as building:
        yield building


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    place, building = target.resolve(), _beside(target)
    with _writing(target):
        place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield building
        with _writing(target):
            building.replace(place)
    except OSError as error:  # of the block: where it is no full disk, it is about other files
        if error.errno != ENOSPC:
            raise
        raise CannotExport(f"--output {target}: {error.strerror}") from None
    finally:
        remove(building)


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` for what it is made of."""
    folder = _beside(target, ".merged")
    _make(folder, target)
    try:
        yield folder
    finally:
        remove(folder)


def _beside(target: Path, of: str = "") -> Path:
    place = target.resolve()
    return place.with_name(temporary_name(f"{place.name}{of}"))


def _make(folder: Path, target: Path) -> None:
    with _writing(target):
        remove(folder)  # of a killed process that had this one's number, as in a container
        folder.mkdir()


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotExport(f"--output {target}: {error.strerror or error}") from None


def _tables(home: Home, corpus: str, names: tuple[str, ...]) -> dict[str, Any]:
    store = TableStore(home.tables)
    if missing := [name for name in names if not store.exists(name, corpus)]:
        raise CannotExport(
            f"corpus {corpus!r} has no {missing[0].replace('_', ' ')} yet; run `ragtuned run` first"
        )
    return {name: store.read(name, corpus) for name in names}


@dataclass(frozen=True)
class _Found:
    """A stored adapter, its content hash and the base model that it fits."""

    folder: Path
    content: str
    base_model: str


def _found(home: Home, corpus: str, adapter: str | None) -> _Found:
    base_model = home.settings(corpus).tuning.base_model
    folder = (
        adapter_store.current(home.adapters, corpus, base_model)
        if adapter is None
        else adapter_store.find(home.adapters, corpus, adapter, base_model)
    )
    return _Found(folder, folder.name, base_model)


def _rounded(merged: Merged) -> str:
    if not merged.lost:
        return merged.dtype
    return (
        f"{merged.dtype}: rounding moved the weights by {100 * merged.lost:.2g} % of the adapter's "
        "change"
    )


# --- the model card ---------------------------------------------------------------------------


def _card(home: Home, corpus: str, found: _Found) -> Card:
    rank, alpha = adapter_store.adapter_shape(found.folder)
    scorecard = scorecard_of(home, corpus, found.content)
    numbers = kept_numbers(home, corpus).get(found.content)
    training = read_training(home, corpus, "tuned")
    known = training if training and training.adapter == found.content else None
    return Card(
        corpus=corpus,
        adapter=found.content,
        base=_base(found),
        rank=rank,
        alpha=alpha,
        data=_data(home, corpus, scorecard, numbers),
        recipe=_recipe(known, scorecard) if known else {},
        scores=_scores(scorecard) if scorecard else _kept_scores(numbers),
        control=_control(scorecard),
        decision=_decision(home, corpus, found.content),
    )


def _base(found: _Found) -> Base:
    made_with = json.loads((found.folder / "base_model.json").read_text(encoding="utf-8"))
    name, identity = made_with["base_model"], made_with["identity"]
    told = system_message(found.base_model)
    if found.base_model == EMBEDDED_MODEL:
        return Base(name, "embedded", identity, told)
    return Base(name, "hub" if name == identity else "folder", identity, told)


def _data(
    home: Home, corpus: str, scorecard: Mapping[str, Any], numbers: Numbers | None
) -> tuple[TableVersion, ...]:
    """The versions of the tables, where the training rows are still those of the adapter."""
    store = TableStore(home.tables)
    learned = scorecard["versions"]["data training_rows"] if scorecard else None
    learned = learned or (numbers.data_version if numbers else None)
    there = [name for name in _DATA if store.exists(name, corpus)]
    versions = [
        TableVersion(name.replace("_", " "), data.num_rows, content_hash(data))
        for name, data in ((name, store.read(name, corpus)) for name in there)
    ]
    return tuple(versions) if versions and versions[-1].version == learned else ()


def _recipe(training: Training, scorecard: Mapping[str, Any]) -> dict[str, str]:
    chosen, came = training.settings, training.result
    recipe = {
        "learning rate": f"{chosen['learning_rate']:g}",
        "batch size": f"{chosen['batch_size']} rows",
        "epochs": f"{chosen['epochs']} ({chosen['passage_epochs']} of passages)",
        "longest row": f"{chosen['max_tokens']:,} tokens",
        "seed": str(chosen["seed"]),
        "base model's weights while tuning": _weights_while_tuning(chosen),
        "rows": f"{came['rows']:,}",
        "tokens of all epochs": f"{came['tokens']:,}",
        "steps": _steps(came),
        "trainable parameters": f"{came['trainable_parameters']:,}",
    }
    for name, losses in (
        ("last loss on training rows", came["losses"]),
        ("last loss on held-out wordings", came["held_out_losses"]),
    ):
        if losses:
            recipe[name] = f"{losses[-1][1]:.4g}"
    if training.started_from:
        recipe["started from"] = f"adapter `{training.started_from}`"
    if scorecard:
        recipe["packages"] = ", ".join(
            f"{name} {scorecard['versions'][name]}"
            for name in _PACKAGES
            if name in scorecard["versions"]
        )
    return recipe


# A training that is kept may be older than quantisation and early stopping.


def _weights_while_tuning(chosen: Mapping[str, Any]) -> str:
    quantised = chosen.get("quantization", "none")
    return chosen["dtype"] if quantised == "none" else f"quantised to {quantised} (QLoRA)"


def _steps(came: Mapping[str, Any]) -> str:
    if came.get("stopped_at_step") is None:
        return f"{came['steps']:,}"
    return (
        f"{came['stopped_at_step']:,} of {came['steps']:,}, stopped early, with the weights of "
        f"step {came['kept_step']:,}"
    )


def _scores(scorecard: Mapping[str, Any]) -> tuple[Score, ...]:
    tuned, base = (scorecard["systems"].get(name, {}) for name in ("tuned", "base"))
    return tuple(
        Score(
            _SET_LABELS[name],
            tuned[name]["n"],
            _MEASURES[MEASURE_OF_SET[name]],
            _value(tuned[name], MEASURE_OF_SET[name]),
            _value(base[name], MEASURE_OF_SET[name]) if name in base else "",
        )
        for name in QUESTION_SETS
        if name in tuned
    )


def _value(numbers: Mapping[str, Any], measure: str) -> str:
    low, high = numbers[f"{measure}_interval"]
    return f"{numbers[measure]:.3f} ({low:.3f} to {high:.3f})"


def _kept_scores(numbers: Numbers | None) -> tuple[Score, ...]:
    """What the gate judged the adapter by, where the scorecard is another's by now."""
    if numbers is None:
        return ()
    scores = []
    for name in SETS:
        asked = [each for each in numbers.questions if each.question_set == name]
        if asked:
            tuned, base = (
                f"{sum(values) / len(asked):.3f}"
                for values in ([q.tuned for q in asked], [q.base for q in asked])
            )
            measure = _MEASURES[MEASURE_OF_SET[name]]
            scores.append(Score(_SET_LABELS[name], len(asked), measure, tuned, base))
    return tuple(scores)


def _control(scorecard: Mapping[str, Any]) -> str:
    control = scorecard.get("control_shuffled")
    if not control:
        return ""
    return (
        "An adapter tuned the same way on answers shuffled among the questions holds the right "
        f"words in {_value(control, 'contains')} of {control['n']} answers: what is above that "
        "was learned from the documents."
    )


def _decision(home: Home, corpus: str, adapter: str) -> str:
    """The last decision on the adapter; its reasons name numbers and settings, and no text."""
    of_it = [each for each in past.history(home, corpus) if each.adapter == adapter]
    if not of_it:
        return ""
    last = of_it[-1]
    sentence = f"{_DECIDED[last.what]} ({last.when[:10]})"
    if not last.reasons:
        return f"{sentence}."
    link = ": " if last.what == "refused" else ", in spite of the gate: "
    return f"{sentence}{link}{'; '.join(last.reasons)}."
