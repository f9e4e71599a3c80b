"""The families of instruct models: their chat templates, and a few steps of training each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ragtuned_pipeline.inference.base_models import load_model, load_tokenizer, settled_template
from ragtuned_pipeline.inference.engine import ANSWER_LENGTH, chat
from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning import sft
from ragtuned_pipeline.tuning.base_models import encode_rows
from ragtuned_pipeline.tuning.sft import TrainResult, train
from ragtuned_pipeline_tests.tuning.conftest import FACTS, FRAMES, rows, write_rows
from ragtuned_pipeline_tests.tuning.tiny_models import FAMILIES, Family, write_model

ROWS = [(ANSWER_LENGTH, prompt, answer) for _, prompt, answer in rows(FRAMES[:1], FACTS[:4])]
LORA: dict[str, Any] = {"rank": 4, "alpha": 8, "learning_rate": 1e-2}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family: Family = request.param
    return family, write_model(family, tmp_path_factory.mktemp(family.name))


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bfloat16 rounds is more than what is looked for here."""
    monkeypatch.setattr(sft, "_bf16_is_fast", lambda: False)


def trained(base: Path, folder: Path, **settings: Any) -> TrainResult:
    folder.mkdir()
    given = write_rows(ROWS, folder / "rows.parquet")
    chosen = TuningSettings(base_model=str(base), **LORA, **settings)
    return train(given, None, chosen, folder / "run", lambda _line: None)


def test_the_loss_is_on_the_answer_and_its_stop_token(made: Any) -> None:
    family, base = made
    tokenizer = load_tokenizer(str(base))
    for (system, prompt, answer), row in zip(ROWS, encode_rows(tokenizer, ROWS), strict=True):
        asked = tokenizer.decode(row.input_ids[: row.prompt_tokens])
        learned = tokenizer.decode(row.input_ids[row.prompt_tokens :])
        assert learned.strip() == answer + family.stop
        assert asked.endswith(family.opens)
        assert asked.count(system) == asked.count(prompt) == 1, "told before the question"
        assert asked.index(system) < asked.index(prompt)
        # What is asked later is what was learned from, to the token.
        later = tokenizer.apply_chat_template(
            chat(prompt, system), add_generation_prompt=True, return_dict=False
        )
        assert later == row.input_ids[: row.prompt_tokens]


def test_a_server_is_given_the_template_where_it_is_not_the_models_own(made: Any) -> None:
    family, base = made
    settled = settled_template(str(base))
    assert (settled is None) is (family.name in ("qwen2.5", "gemma3"))
    if settled is not None:
        assert settled == load_tokenizer(str(base)).chat_template


def test_the_stop_token_is_the_one_that_generation_stops_at(made: Any) -> None:
    family, base = made
    model = load_model(str(base), "float32")
    stop = load_tokenizer(str(base)).convert_tokens_to_ids(family.stop)
    assert model.generation_config.eos_token_id == [stop]


def test_three_steps_lower_the_loss_and_reach_every_linear_layer_but_the_head(
    made: Any, tmp_path: Path
) -> None:
    _, base = made
    result = trained(base, tmp_path / "alone", epochs=3, batch_size=4)
    assert [step for step, _ in result.losses] == [1, 2, 3]
    assert result.losses[2][1] < result.losses[0][1]
    model = load_model(str(base), "float32")
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    with safe_open(Path(result.adapter) / "adapter_model.safetensors", "np") as weights:
        adapted = {name.split(".lora_")[0] for name in weights.keys()}  # noqa: SIM118
    assert adapted == {f"base_model.model.{name}" for name in linear}
    # The first step sees the same rows, here as one sequence.
    packed = trained(base, tmp_path / "packed", epochs=1, batch_size=1, packing=True)
    assert packed.losses[0][1] == pytest.approx(result.losses[0][1], rel=1e-5)


def test_an_answer_without_an_end_is_refused(tmp_path: Path) -> None:
    base = write_model(FAMILIES[0], tmp_path / "base")
    file = base / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"eos_token_id": 5}))
    with pytest.raises(SettingsError, match=r"end with '<\|im_end\|>\\n' by its chat template"):
        trained(base, tmp_path / "run", epochs=1)
