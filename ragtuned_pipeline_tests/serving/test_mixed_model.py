"""A batch that rows join and leave says what each row says alone, whatever attention looks like."""

from __future__ import annotations

from typing import Any

import pytest

from ragtuned_pipeline.serving.mixed_model import Batch, MixedModel

TOKENS = 12
WINDOW = 8  # tokens that a layer with a sliding window looks back
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def _config(kind: str) -> Any:
    import transformers

    if kind == "mistral":
        return transformers.MistralConfig(**SHAPE, sliding_window=WINDOW)
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(
            **SHAPE, head_dim=16, sliding_window=WINDOW, sliding_window_pattern=2
        )
    return transformers.Qwen2Config(**SHAPE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gemma3"])
def test_rows_that_join_and_leave_are_those_of_generate(kind: str, attention: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(0)
    config = _config(kind)
    config._attn_implementation = attention
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weights in model.parameters():
        if weights.dim() > 1:  # as they come, all tokens are about equally likely
            torch.nn.init.normal_(weights, std=0.15)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    prompts = [[5, 6, 7, 8] * 3, [12, 13], list(range(20, 50))]
    wanted = [
        model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    mixed = MixedModel(model)
    batch, rows = Batch(mixed), []
    said: dict[int, list[int]] = {}
    with torch.inference_mode():
        for step in range(60):
            if step in (0, 2, 4):  # one more row
                row = step // 2
                fresh = Batch(mixed)
                said[row] = fresh.prefill(None, prompts[row]).argmax(-1).tolist()
                batch.join(fresh)
                rows.append(row)
            logits = batch.step([said[row][-1] for row in rows])
            for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
                said[row].append(token)
            stay = [place for place, row in enumerate(rows) if len(said[row]) < TOKENS]
            batch.keep(stay)
            rows = [rows[place] for place in stay]
            if not rows:
                break
    assert [said[row] for row in range(3)] == wanted
    assert batch.size == 0
