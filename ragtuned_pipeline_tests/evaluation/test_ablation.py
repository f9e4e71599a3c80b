import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.evaluation.ablation import (
    VARIANTS,
    ablation_scores,
    check_variants,
    variant_queries,
    variant_rows,
    variant_tuning,
)
from ragtuned_pipeline.settings import AblationSettings, SettingsError, TuningSettings
from ragtuned_pipeline.synthesis.rows import NothingToTrain
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import world

TUNING = TuningSettings(epochs=2, passage_epochs=1, min_wordings=2)
ABLATION = AblationSettings(time_budget_minutes=0.5)


def pairs() -> pa.Table:
    """Local facts, a relationship asked from both ends, an overview, a refusal and a replay row."""
    rows = world.qa_pairs().to_pylist()
    ends = {"kind": "global_relationship", "relationship_ids": ["rel-1"]}
    changed = {"fact-2": ends, "fact-3": ends, "fact-4": {"kind": "global_entity"}}
    rows = [row | changed.get(row["fact_id"], {}) for row in rows]
    rows.append(world.pair("fact-1", 20, "train", kind="replay", fact_id="replay-1"))
    return table("qa_pairs", rows)


def rows(name: str, replay_share: float = 0.3) -> pa.Table:
    tuning = variant_tuning(name, TUNING, ABLATION)
    made = variant_rows(name, pairs(), world.count_words, tuning, replay_share)
    assert made.tokens <= made.token_budget
    return made.training_rows


def kinds(name: str) -> set[str]:
    return set(rows(name)["kind"].to_pylist())


def test_each_variant_is_tuned_on_its_part() -> None:
    assert kinds("local") == {"local", "unanswerable", "replay"}
    assert kinds("global") == {"global_entity", "global_relationship", "unanswerable", "replay"}
    assert kinds("both") == kinds("local") | kinds("global")
    assert kinds("no_refusals") == kinds("both") - {"unanswerable"}
    assert kinds("no_replay") == kinds("both") - {"replay"}


def test_one_direction_keeps_one_of_the_two_facts_of_a_relationship() -> None:
    asked = rows("one_direction").filter(pc.field("kind") == "global_relationship")
    assert set(asked["fact_id"].to_pylist()) == {"fact-2"}
    both = rows("both").filter(pc.field("kind") == "global_relationship")
    assert set(both["fact_id"].to_pylist()) == {"fact-2", "fact-3"}


def test_one_wording_asks_every_fact_once() -> None:
    counts = pc.value_counts(rows("one_wording")["fact_id"]).to_pylist()
    assert {entry["counts"] for entry in counts} == {1}
    assert len(counts) == pc.count_distinct(rows("both")["fact_id"]).as_py()


def test_a_rank_changes_the_adapter_and_nothing_else() -> None:
    tuning = variant_tuning("rank_8", TUNING, ABLATION)
    assert (tuning.rank, tuning.alpha) == (8, 16)
    assert rows("rank_8").equals(rows("both"))
    same = tuning.model_copy(update={"rank": TUNING.rank, "alpha": TUNING.alpha})
    assert same == variant_tuning("both", TUNING, ABLATION)


def test_all_variants_have_the_same_budget() -> None:
    budgets = {
        variant_rows(
            name, pairs(), world.count_words, variant_tuning(name, TUNING, ABLATION), 0.0
        ).token_budget
        for name in VARIANTS
    }
    assert len(budgets) == 1


def test_a_corpus_without_the_part_says_so() -> None:
    local = pairs().filter(pc.field("kind") == "local")
    tuning = variant_tuning("global", TUNING, ABLATION)
    refusals = pairs().filter(pc.field("kind").isin(["local", "unanswerable"]))
    with pytest.raises(NothingToTrain, match="no pair of its kinds"):
        variant_rows("global", refusals, world.count_words, tuning, 0.0)
    with pytest.raises(NothingToTrain):
        variant_rows("global", local, world.count_words, tuning, 0.0)


def test_an_unknown_variant_is_named_with_the_known_ones() -> None:
    check_variants(ABLATION)
    with pytest.raises(SettingsError, match=r"ablation.variants: 'locl' is not one of local, "):
        check_variants(AblationSettings(variants=("locl",)))


def test_scores_keep_local_and_global_apart_and_leave_out_what_no_variant_was_taught() -> None:
    _, queries, _ = world.evaluation()
    scope = pa.array(["global" if n % 2 else "local" for n in range(queries.num_rows)], pa.string())
    queries = queries.set_column(queries.schema.get_field_index("scope"), "scope", scope)
    asked = variant_queries(queries, [])
    assert set(asked["question_set"].to_pylist()) == {"held_out_wording"}
    taught = rows("local").slice(0, 1)
    first = asked["question"][0].as_py()
    place = taught.schema.get_field_index("prompt")
    taught = taught.set_column(place, "prompt", pa.array([first.upper()], pa.string()))
    assert variant_queries(queries, [taught])["id"].to_pylist() == asked["id"].to_pylist()[1:]
    right = world.answers("local", asked, asked["reference_answer"].to_pylist())
    wrong = world.answers("global", asked, ["The mill."] * asked.num_rows)
    trained = {"local": rows("local"), "global": rows("global")}
    made = ablation_scores(asked, pa.concat_tables([right, wrong]), trained, 1)
    assert made["local"]["scores"]["local"]["contains"] == 1
    assert made["global"]["scores"]["local"]["contains"] == 0
    counted = {scope: made["local"]["scores"][scope]["n"] for scope in ("local", "global")}
    assert sum(counted.values()) == asked.num_rows
    assert made["local"]["rows"] == trained["local"].num_rows
    seen = np.array(trained["local"]["n_tokens"]) * np.array(trained["local"]["epochs"])
    assert made["local"]["tokens"] == seen.sum()
