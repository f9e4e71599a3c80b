"""What groups of entities are about, and what the memory as a whole is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import COMMUNITY, Fact, Links, telling_part, up_to
from ragtuned_pipeline.synthesis.stated import DocumentsOf, taught_sentences

_GENERATOR = "template:community@1"
_MOST_THEMES = 12  # of the memory as a whole


def community_facts(
    communities: pa.Table,
    reports: pa.Table,
    documents_of: DocumentsOf,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> list[Fact]:
    """Return one fact a report, and one for the memory as a whole from the top-level reports."""
    members = {row["community"]: row for row in communities.to_pylist()}
    rows = sorted(reports.to_pylist(), key=lambda row: (row["level"], row["community"]))
    facts = [
        _theme(row, members[row["community"]], documents_of, settings, held_out)
        for row in rows
        if row["community"] in members
    ]
    top = [row for row in rows if row["level"] == 0 and row["community"] in members]
    if top:
        facts.insert(0, _memory(top, members, documents_of, settings, held_out))
    return facts


def _theme(
    report: Mapping[str, Any],
    community: Mapping[str, Any],
    documents_of: DocumentsOf,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> Fact:
    limit = settings.max_answer_characters
    summary = " ".join(taught_sentences([report["summary"] or ""], held_out))
    found = [
        sentence
        for finding in report["findings"] or ()
        for sentence in taught_sentences(
            [finding["explanation"] or finding["summary"] or ""], held_out
        )
        if sentence not in summary
    ]
    body = " ".join([summary, *dict.fromkeys(found)]).strip()
    short = up_to(summary or body, limit // 3) if body else ""
    title = report["title"]
    return Fact(
        kind=COMMUNITY,
        key=f"{community['id']}\n{title}",
        gold=telling_part(up_to(short, 1) if short else "", (title,)),
        short=short,
        long=up_to(body, limit),
        asked={"theme": ({"topic": title},)},
        links=Links(
            documents_of(community["text_unit_ids"]),
            tuple(community["text_unit_ids"]),
            tuple(community["entity_ids"]),
            tuple(community["relationship_ids"]),
            (community["id"],),
        ),
        generator=_GENERATOR,
        importance=float(report["rank"] or 0.0),
        drop=None if body else "held out",
    )


def _memory(
    top: Sequence[Mapping[str, Any]],
    members: Mapping[int, Mapping[str, Any]],
    documents_of: DocumentsOf,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> Fact:
    ranked = sorted(top, key=lambda row: (-(row["rank"] or 0.0), row["community"]))[:_MOST_THEMES]
    titles = "; ".join(row["title"] for row in ranked)
    opening = f"The main themes are: {titles}."
    sentences = [
        next(iter(taught_sentences([row["summary"] or ""], held_out)), "") for row in ranked
    ]
    text = up_to(" ".join(filter(None, [opening, *sentences])), settings.max_answer_characters)
    communities = [members[row["community"]] for row in ranked]
    units = tuple(dict.fromkeys(unit for c in communities for unit in c["text_unit_ids"]))
    return Fact(
        kind=COMMUNITY,
        key="memory",
        gold=ranked[0]["title"],
        short=text,
        long=text,
        asked={"memory": ({},)},
        links=Links(
            documents_of(units),
            units,
            tuple(dict.fromkeys(e for c in communities for e in c["entity_ids"])),
            (),
            tuple(c["id"] for c in communities),
        ),
        generator=_GENERATOR,
        importance=float("inf"),
    )
