"""What the code location holds; a change here is a change of the interface."""

from html import escape

from dagster import AssetKey

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline_tests.lineage_picture import PICTURE, shown_name

ASSETS = {
    "corpus": [
        "base_text_units",
        "corpus_folder",
        "documents",
        "documents_failures",
        "teacher_plan",
    ],
    "graph": [
        "communities",
        "community_reports",
        "entities",
        "graph_failures",
        "graph_picture",
        "graph_usage",
        "relationships",
        "reports_failures",
        "reports_usage",
        "text_units",
    ],
    "synthesis": [
        "coverage",
        "new_wording_queries",
        "qa_pairs",
        "synthesis_failures",
        "synthesis_usage",
        "training_plan",
        "training_rows",
    ],
    "tuning": ["lora_adapter"],
    "evaluation": [
        "answers",
        "answers_control",
        *(
            f"answers_{system}{made}"
            for made in ("", "_failures")
            for system in (
                "base",
                "graphrag_global",
                "graphrag_local",
                "long_context",
                "tuned",
                "tuned_rag",
                "vanilla_rag",
            )
        ),
        "control_adapter",
        "control_queries",
        "control_rows",
        "corpora_report",
        "failures",
        "generated_queries",
        "generated_queries_failures",
        "generated_queries_usage",
        "grades",
        "judgements",
        "judgements_failures",
        "judgements_usage",
        "probe",
        "queries",
        "queries_failures",
        "report",
        "scorecard",
        "scores",
        "win_rates",
    ],
    "ablation": [
        "ablation_judgements",
        "ablation_judgements_failures",
        "ablation_judgements_usage",
        "ablation_queries",
        "ablation_win_rates",
        *(
            f"{made}_{variant}"
            for made in ("ablation_rows", "ablation_adapter", "answers_ablation")
            for variant in (
                "local",
                "global",
                "both",
                "one_wording",
                "one_direction",
                "no_refusals",
                "no_replay",
                "rank_8",
                "rank_32",
                "rank_128",
            )
        ),
    ],
    "promotion": ["promoted_adapter"],
}


def test_the_assets_by_group() -> None:
    graph = defs.resolve_asset_graph()
    found: dict[str, list[str]] = {}
    for key in sorted(graph.get_all_asset_keys()):
        found.setdefault(graph.get(key).group_name or "", []).append(key.to_user_string())
    assert found == {group: sorted(names) for group, names in ASSETS.items()}


def test_the_lineage_picture_shows_every_asset() -> None:
    """`python -m ragtuned_pipeline_tests.lineage_picture` draws it anew."""
    picture = PICTURE.read_text(encoding="utf-8")
    for names in ASSETS.values():
        shown = {escape(shown_name(AssetKey(name))) for name in names}
        assert [name for name in shown if f">{name}</text>" not in picture] == []


def test_every_asset_is_described_owned_and_versioned_and_has_one_partition_a_corpus() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        asset = graph.get(key)
        assert asset.description, key
        assert asset.owners, key
        assert asset.kinds, key
        assert asset.partitions_def is not None, key
        assert key.to_user_string() == "corpus_folder" or asset.code_version, key


def test_jobs_sensors_and_schedules() -> None:
    repository = defs.get_repository_def()
    assert [job.name for job in repository.get_all_jobs() if not job.name.startswith("__")] == [
        "build_memory",
        "full_evaluation",
        "serve_memories",
    ]
    assert sorted(sensor.name for sensor in repository.sensor_defs) == [
        "automation",
        "corpora_sensor",
        "keep_serving",
    ]
    assert [schedule.name for schedule in repository.schedule_defs] == ["nightly"]
