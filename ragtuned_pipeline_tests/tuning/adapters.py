"""Adapters that nothing was learned in, for what only needs one that changes the answers."""

from __future__ import annotations

from pathlib import Path


def random_adapter(folder: Path, seed: int = 0, base_model: str = "embedded") -> Path:
    """Save an adapter of rank 4 with drawn weights, as training saves one."""
    import torch
    from peft import LoraConfig, get_peft_model

    from ragtuned_pipeline.inference.base_models import load_model

    torch.manual_seed(seed)
    model = get_peft_model(
        load_model(base_model, "float32"),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
    model.save_pretrained(str(folder))
    return folder
