"""The ablation: adapters tuned on parts of the rows, asked the same questions.

After Fig. 3 of the paper (local split, global split, both), and by setting one thing less at a
time: wordings, directions, refusals, replay rows, and ranks. Every variant has the same budget of
tokens, so that a smaller part is not also a shorter training; a part that does not fill the budget
is, and the tokens of each are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.questions.queries import plain_question
from ragtuned_pipeline.evaluation.scorecard import score_each, summary
from ragtuned_pipeline.settings import AblationSettings, SettingsError, TuningSettings
from ragtuned_pipeline.synthesis.facts import (
    COMMUNITY,
    ENTITY,
    LOCAL,
    RELATIONSHIP,
    REPLAY,
    UNANSWERABLE,
)
from ragtuned_pipeline.synthesis.rows import (
    CountTokens,
    NothingToTrain,
    TrainingSelection,
    select_training_rows,
    turn_in_fact,
)

SCOPES = ("local", "global")
# What the variants are scored on by reference: other wordings of facts, whether a variant was
# tuned on them or not.
SCORED_SETS = ("held_out_wording", "generated_local", "gold_local", "gold_global")


@dataclass(frozen=True)
class Variant:
    """Which pairs a variant may be tuned on, and with what rank.

    Args:
        part: qa_pairs to the pairs that it is tuned on.
        rank: of its adapter; None for tuning.rank. Alpha keeps its ratio to it.
        wordings: of a fact, at most.
    """

    part: Callable[[pa.Table], pa.Table]
    rank: int | None = None
    wordings: int | None = None


def _kinds(*kinds: str) -> Callable[[pa.Table], pa.Table]:
    return lambda pairs: pairs.filter(pc.field("kind").isin([*kinds, UNANSWERABLE, REPLAY]))


def _without(kind: str) -> Callable[[pa.Table], pa.Table]:
    return lambda pairs: pairs.filter(pc.field("kind") != kind)


def _one_direction(pairs: pa.Table) -> pa.Table:
    """Of the facts that ask one relationship from its two ends, keep the one with the lower id."""
    columns = pairs.select(["fact_id", "relationship_ids", "kind"]).to_pydict()
    first: dict[tuple[str, ...], str] = {}
    for fact, relationships, kind in zip(*columns.values(), strict=True):
        if kind == RELATIONSHIP:
            key = tuple(sorted(relationships))
            first[key] = min(fact, first.get(key, fact))
    kept = pa.array(sorted(first.values()), pa.string())
    return pairs.filter((pc.field("kind") != RELATIONSHIP) | pc.field("fact_id").isin(kept))


def _everything(pairs: pa.Table) -> pa.Table:
    return pairs


VARIANTS: Mapping[str, Variant] = {
    "local": Variant(_kinds(LOCAL)),
    "global": Variant(_kinds(ENTITY, RELATIONSHIP, COMMUNITY)),
    "both": Variant(_everything),
    "one_wording": Variant(_everything, wordings=1),
    "one_direction": Variant(_one_direction),
    "no_refusals": Variant(_without(UNANSWERABLE)),
    "no_replay": Variant(_without(REPLAY)),
    "rank_8": Variant(_everything, rank=8),
    "rank_32": Variant(_everything, rank=32),
    "rank_128": Variant(_everything, rank=128),
}


def check_variants(settings: AblationSettings) -> None:
    """Raise SettingsError where the setting ablation.variants names what there is not."""
    unknown = [name for name in settings.variants if name not in VARIANTS]
    if unknown:
        raise SettingsError(
            f"setting ablation.variants: {unknown[0]!r} is not one of {', '.join(VARIANTS)}"
        )


def variant_tuning(name: str, tuning: TuningSettings, settings: AblationSettings) -> TuningSettings:
    """Return the settings that the variant `name` is tuned with: all else equal."""
    variant = VARIANTS[name]
    changes: dict[str, Any] = {"time_budget_minutes": settings.time_budget_minutes}
    if variant.rank is not None:
        alpha = max(1, round(tuning.alpha * variant.rank / tuning.rank))
        changes |= {"rank": variant.rank, "alpha": alpha}
    if variant.wordings is not None:
        changes |= {"min_wordings": min(variant.wordings, tuning.min_wordings)}
    return tuning.model_copy(update=changes)


def variant_rows(
    name: str,
    qa_pairs: pa.Table,
    count_tokens: CountTokens,
    tuning: TuningSettings,
    replay_share: float,
) -> TrainingSelection:
    """Return the rows that the variant `name` is tuned on.

    Args:
        tuning: of `variant_tuning`.

    Raises:
        NothingToTrain: the corpus has no pair of the variant's part.
    """
    variant = VARIANTS[name]
    pairs = variant.part(qa_pairs.filter(pc.field("kept") & (pc.field("split") == "train")))
    if not pairs.filter(~pc.field("kind").isin([UNANSWERABLE, REPLAY])).num_rows:
        raise NothingToTrain("the corpus has no pair of its kinds")
    if variant.wordings is not None:
        pairs = pairs.filter(pa.array(turn_in_fact(pairs) < variant.wordings))
    return select_training_rows(pairs, count_tokens, tuning, replay_share)


def variant_queries(queries: pa.Table, rows: Iterable[pa.Table]) -> pa.Table:
    """Return the questions that the variants are asked: answerable ones about what tuning may use.

    Facts that are held out of tuning as a whole would measure no variant. A question that stands
    word for word among the rows of any variant is asked of none.

    Args:
        rows: the training rows of the variants.
    """
    asked = queries.filter(pc.field("question_set").isin([*SCORED_SETS, "generated_global"]))
    seen = {plain_question(each) for table in rows for each in table["prompt"].to_pylist()}
    fresh = [plain_question(each) not in seen for each in asked["question"].to_pylist()]
    return asked.filter(pa.array(fresh, pa.bool_()))


def ablation_scores(
    queries: pa.Table, answers: pa.Table, rows: Mapping[str, pa.Table], seed: int
) -> dict[str, Any]:
    """Return for each variant what it was tuned on and how it scores, local and global apart.

    Args:
        queries: of `variant_queries`.
        answers: of all variants, with the variant's name as the system.
        rows: the training rows by variant.
    """
    cells = [
        cell for cell in score_each(queries, answers) if cell.query["question_set"] in SCORED_SETS
    ]
    made: dict[str, Any] = {}
    for name, trained in rows.items():
        own = [cell for cell in cells if cell.system == name]
        scoped = {scope: [c for c in own if c.query["scope"] == scope] for scope in SCOPES}
        made[name] = {
            "rows": trained.num_rows,
            "tokens": int(pc.sum(pc.multiply(trained["n_tokens"], trained["epochs"])).as_py() or 0),
            "facts": pc.count_distinct(trained["fact_id"]).as_py(),
            "scores": {scope: summary(group, seed) for scope, group in scoped.items() if group},
        }
    return made
