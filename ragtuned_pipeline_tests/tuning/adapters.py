"""Adapters that nothing was learned in, for what only needs one that changes the answers."""

from __future__ import annotations

from pathlib import Path


def random_adapter(folder: Path, seed: int = 0, rank: int = 4) -> Path:
    """Save an adapter of the embedded base model with drawn weights, as training saves one."""
    import torch
    from peft import LoraConfig, get_peft_model

    from ragtuned_pipeline.inference.base_models import load_model

    torch.manual_seed(seed)
    model = get_peft_model(
        load_model("embedded", "float32"),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
    model.save_pretrained(str(folder))
    return folder
