"""What `ragtuned why` shows: an answer, and under it what it was learned from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from ragtuned_pipeline.evaluation.provenance import RULE, FactSource, NearRow, Provenance
from ragtuned_pipeline.orchestration.lineage import AdapterLineage, Lineage, Made
from ragtuned_pipeline.synthesis.facts import UNANSWERABLE

_SENTENCES = 5  # shown of one fact, and other things it has many of
_CHARACTERS = 400  # of one text
_ANOTHER = "No row below asks what was asked, as far as words tell: the answer may be another's."


def show_lineage(lineage: Lineage) -> None:
    """Print the lineage as a tree; texts of the corpus are never read as markup."""
    provenance = lineage.provenance
    tree = Tree(_plain(provenance.answer or "(no answer)", "bold"))
    if provenance.nothing_near:
        tree.add(_plain(_nothing_near(provenance)))
    elif provenance.answers_another:
        tree.add(_plain(_ANOTHER))
    for fact in provenance.facts:
        _add_fact(tree, fact, lineage)
    adapter = tree.add(_plain(f"adapter {lineage.adapter.adapter}", "bold"))
    for line in _adapter_lines(lineage.adapter):
        adapter.add(_plain(line))
    Console(highlight=False).print(tree)


def _nothing_near(provenance: Provenance) -> str:
    said = "The answer declines" if provenance.declined else "The answer"
    nearest = provenance.nearest
    if nearest is None:
        return f"{said}; no training row states anything."
    start = (
        f"{said}, and no" if provenance.declined else f"{said} has no training row behind it: no"
    )
    return (
        f"{start} row that states something is near. The nearest has a similarity of "
        f"{nearest.similarity:.2f} ({_cut(nearest.prompt)!r}); {RULE}."
    )


def _add_fact(tree: Tree, fact: FactSource, lineage: Lineage) -> None:
    branch = tree.add(_plain(_headline(fact), "bold"))
    for row in fact.rows:
        unknown = ", which this adapter has not learned" if lineage.is_unknown(row) else ""
        rows = branch.add(_plain(f"{_row_note(row)}{unknown}", "dim"))
        rows.add(_plain(f"{_cut(row.prompt)}\n→ {_cut(row.completion)}"))
    for sentence in fact.sentences[:_SENTENCES]:
        where = (
            f"{sentence.document.title or 'untitled'} ({sentence.document.path}), "
            f"characters {sentence.start:,}–{sentence.end:,}"
        )
        note = "stated in" if sentence.states else "nearest sentence of its text units, in"
        told = branch.add(_plain(f"{note} {where}", "dim"))
        told.add(_plain(_cut(" ".join(sentence.text.split()))))
    if len(fact.sentences) > _SENTENCES:
        branch.add(_plain(f"and {len(fact.sentences) - _SENTENCES} more sentences", "dim"))
    for line in _links(fact):
        branch.add(_plain(line))


def _headline(fact: FactSource) -> str:
    kind = fact.kind.replace("_", " ")
    if fact.gold is None:
        return f"{fact.id} ({kind}): no longer in the table qa_pairs"
    if fact.kind == UNANSWERABLE:
        return f"{fact.id} ({kind}): a refusal, for what the corpus does not say"
    return f"{fact.id} ({kind}): {_cut(fact.gold)}"


def _row_note(row: NearRow) -> str:
    other = "" if row.asks_alike else ", asks something else"
    return (
        f"training row, similarity {row.similarity:.2f} (question {row.question_similarity:.2f}, "
        f"answer {row.answer_similarity:.2f}){other}"
    )


def _links(fact: FactSource) -> Iterator[str]:
    trained = sum(each.trained for each in fact.wordings)
    held_out = sum(each.split.startswith("held_out") for each in fact.wordings)
    if fact.wordings:
        yield f"wordings: {trained} trained, {held_out} held out, of {len(fact.wordings)}"
    related = (f"{r.source} → {r.target}: {_cut(r.description)}" for r in fact.relationships)
    for name, values in (
        ("entities", (each.title for each in fact.entities)),
        ("relationships", related),
        ("communities", (each.title for each in fact.communities)),
        ("text units", (each.id for each in fact.text_units)),
        ("documents", (f"{d.title or 'untitled'} ({d.path})" for d in fact.documents)),
    ):
        if listed := _listed(values):
            yield f"{name}: {listed}"


def _listed(values: Iterable[str]) -> str:
    found = list(values)
    more = f" and {len(found) - _SENTENCES} more" if len(found) > _SENTENCES else ""
    return "; ".join(found[:_SENTENCES]) + more


def _adapter_lines(adapter: AdapterLineage) -> Iterator[str]:
    yield f"base model: {adapter.base_model}"
    rows = adapter.rows_version or "(not recorded)"
    yield f"trained: {_when(adapter.trained)}, on training rows {rows}"
    if adapter.start:
        yield adapter.start
    yield f"promoted: {_when(adapter.promoted)}"
    yield f"training rows on disk: {adapter.rows_on_disk}, made {_when(adapter.tables)}"
    yield from _beside_rows(adapter)
    if adapter.newer:
        why = f": {adapter.refused}" if adapter.refused else ""
        yield f"A newer adapter, {adapter.newer}, was trained and does not answer{why}"


def _beside_rows(adapter: AdapterLineage) -> Iterator[str]:
    """What differs between the rows shown, which are those on disk, and what was learned."""
    shown = "the rows above are those on disk, and it may not know them"
    if adapter.unknown_rows or adapter.withdrawn_rows:
        yield (
            f"It has not learned {len(adapter.unknown_rows or ()):,} of the rows on disk, and has "
            f"learned {adapter.withdrawn_rows or 0:,} that are no longer there."
        )
    elif adapter.knows_rows is None:
        yield f"It is not recorded on which training rows this adapter was trained: {shown}."
    elif not adapter.knows_rows:
        yield f"This adapter was trained on another version of the training rows: {shown}."


def _when(made: Made | None) -> str:
    return f"{made.at}, run {made.run}" if made else "not recorded"


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …"


def _plain(text: str, style: str = "") -> Text:
    return Text(text, style=style)
