"""Base models by name, id and folder, and rows as tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Gemma2Config, Gemma3Config, Qwen2Config
from trl import SFTConfig, SFTTrainer

from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER, attention, load_config
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning.base_models import (
    encode_rows,
    identity,
    load_fast_tokenizer,
    load_model,
    load_tokenizer,
    resolve,
    row_counter,
)

ROWS = [
    (None, "Who opened the Harrow Bakery?", "Mirela Voss."),
    ("Answer from memory.", "What is 94 metres high? Ünïcödé «ok»", "The Hask Dam,\nso they say."),
]


def test_rows_have_the_tokens_that_trl_would_make(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    messages = [
        {
            "prompt": ([{"role": "system", "content": s}] if s else [])
            + [{"role": "user", "content": p}],
            "completion": [{"role": "assistant", "content": c}],
        }
        for s, p, c in ROWS
    ]
    trainer = SFTTrainer(
        model=load_model("embedded", "float32"),
        args=SFTConfig(str(tmp_path), max_length=None, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(messages),
        processing_class=tokenizer,
    )
    ours = encode_rows(tokenizer, ROWS)
    assert trainer.train_dataset["input_ids"] == [row.input_ids for row in ours]
    assert trainer.train_dataset["labels"] == [
        [-100] * row.prompt_tokens + row.input_ids[row.prompt_tokens :] for row in ours
    ]
    assert ours[0].input_ids[-1] == tokenizer.eos_token_id
    assert row_counter(tokenizer)(ROWS).tolist() == [len(row.input_ids) for row in ours]


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = load_fast_tokenizer("embedded")
    text = "Ms. Voss paid 1,200.50 crowns at 7 p.m. — «à côté», 東京\n\t- done!"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_folder_is_known_by_its_contents_and_not_by_its_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    assert identity(str(copy)) == identity("embedded")
    assert resolve(str(copy)) == str(copy)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("1e-06", "1e-05"))
    assert identity(str(copy)) != identity("embedded")
    assert identity("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


def test_a_missing_model_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"tuning\.base_model: .* no folder with a model"):
        resolve(str(tmp_path))
    # The variable HF_HUB_OFFLINE is read once, at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError) as told:
        load_tokenizer("some-org/no-such-model")
    assert "setting tuning.base_model: some-org/no-such-model cannot be loaded" in str(told.value)
    assert "a local folder" in str(told.value)
    assert "\n" not in str(told.value)


def test_soft_capped_scores_are_computed_by_plain_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capped, bare = Gemma2Config(), Gemma2Config(attn_logit_softcapping=None)
    assert attention(capped) == attention(bare) == attention(Qwen2Config()) == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert attention(bare) == attention(Qwen2Config()) == "sdpa"
    assert attention(capped) == "eager"


def test_a_model_that_sees_pictures_is_refused(tmp_path: Path) -> None:
    Gemma3Config().save_pretrained(tmp_path)
    for load in (load_config, lambda base: load_model(base, "float32")):
        with pytest.raises(SettingsError, match="sees pictures too"):
            load(str(tmp_path))
    Gemma3Config().text_config.save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).model_type == "gemma3_text"
