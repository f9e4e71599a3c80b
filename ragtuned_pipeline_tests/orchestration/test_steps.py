"""What a step's code version is made of."""

from pathlib import Path

import pytest

from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.orchestration import answering
from ragtuned_pipeline.orchestration.steps import ROOT, code_behind
from ragtuned_pipeline.settings import load_settings


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_code_behind_a_system_is_there_and_is_not_that_of_the_list(system: str) -> None:
    behind = code_behind(f"evaluation/systems/{system}.py")
    assert f"evaluation/systems/{system}.py" in behind
    assert "evaluation/systems/interface.py" in behind
    assert "inference/transformers_engine.py" in behind, "what answers is behind an import inside"
    assert "evaluation/systems/__init__.py" not in behind, "a new system changes the list"
    assert not {"settings.py", "tables.py"} & set(behind)
    assert all((Path(ROOT) / each).is_file() for each in behind)


def test_a_system_depends_on_no_other_that_it_does_not_use() -> None:
    others = {f"evaluation/systems/{system}.py" for system in SYSTEMS}
    for system, used in {
        "tuned": set(),
        "base": set(),
        "vanilla_rag": set(),
        "long_context": set(),
        "tuned_rag": {"vanilla_rag"},
        "graphrag_local": set(),
        "graphrag_global": {"graphrag_local"},
    }.items():
        own = {f"evaluation/systems/{each}.py" for each in {system, *used}}
        assert others & set(code_behind(f"evaluation/systems/{system}.py")) == own


def test_prompts_that_a_module_names_are_behind_it() -> None:
    prompts = {
        each
        for each in code_behind("evaluation/systems/graphrag_global.py")
        if "graphrag_map" in each
    }
    assert prompts == {"evaluation/systems/prompts/graphrag_map.md.j2"}
    assert not [each for each in code_behind("evaluation/systems/tuned.py") if each.endswith(".j2")]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_reply_is_of_the_code_that_lays_the_question_out(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(answering, "code_version", lambda *rooms: read.extend(rooms) or "hash")
    own = {"evaluation": {"engine": engine}}
    answering.engine_key(load_settings(Path("nowhere"), overrides=own, environment={}))
    laid_out = {"vllm": {"openai_backend", "vllm_server"}, "transformers": set[str]()}[engine]
    for name in {"chat_template", "base_models", f"{engine}_engine"} | laid_out:
        assert f"inference/{name}.py" in read
