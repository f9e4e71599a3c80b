"""Adapters that nothing was learned in, for what only needs one that changes the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def random_adapter(
    folder: Path, seed: int = 0, base_model: str = "embedded", std: float = 0.1, **lora: Any
) -> Path:
    """Save an adapter with drawn weights, as training saves one.

    Args:
        std: of the weights; the larger, the more it changes the answers.
        lora: arguments of LoraConfig; without any, the rank is 4.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from ragtuned_pipeline.inference.base_models import load_model

    torch.manual_seed(seed)
    model = get_peft_model(
        load_model(base_model, "float32"),
        LoraConfig(**{**_LORA, **lora}),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=std)
    model.save_pretrained(str(folder))
    return folder
