"""What the code location holds; a change here is a change of the interface."""

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline_tests.lineage_picture import PICTURE

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
        "answers_base",
        "answers_control",
        "answers_long_context",
        "answers_tuned",
        "answers_vanilla_rag",
        "control_adapter",
        "control_queries",
        "control_rows",
        "failures",
        "queries",
        "queries_failures",
        "report",
        "scorecard",
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
        assert [name for name in names if f">{name}</text>" not in picture] == []


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
        "build_memory"
    ]
    assert [sensor.name for sensor in repository.sensor_defs] == ["corpora_sensor"]
    assert [schedule.name for schedule in repository.schedule_defs] == ["nightly"]
