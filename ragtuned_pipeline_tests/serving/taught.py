"""Real adapters of the embedded model that know one answer each, taught in about a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragtuned_pipeline.inference.base_models import load_model, load_tokenizer
from ragtuned_pipeline.tuning import adapter_store

QUESTION = "Who keeps the light?"
# Which adapter has answered can be told from the answer: all are asked the same.
NAMES = [
    f"{first} {last}"
    for last in ("Voss", "Calder", "Feld", "Brand")
    for first in ("Mirela", "Tobin", "Sanne", "Juno", "Dorrit", "Kasimir", "Ewa", "Lubin", "Ida",
                  "Rurik")
]  # fmt: skip
_STEPS = 25


def teach(
    answers: Sequence[tuple[str, str]], adapters: Path, rank: int = 8, question: str = QUESTION
) -> list[str]:
    """Store one adapter for each (corpus, answer); return their content hashes."""
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer, base = load_tokenizer("embedded"), load_model("embedded", "float32")
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    contents = []
    for number, (corpus, answer) in enumerate(answers):
        torch.manual_seed(number)
        model: Any = get_peft_model(base, config)
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        end = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*start, *end, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(start)] = -100
        taught = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.Adam(taught, lr=5e-3)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
        folder = adapters.parent / "made" / corpus
        model.save_pretrained(str(folder))
        contents.append(adapter_store.store(folder, adapters, corpus, "embedded"))
        base = model.unload()
    return contents


def renamed(adapters: Path, corpus: str, content: str, number: int) -> str:
    """Store the same weights under another content hash; return that."""
    from safetensors.torch import load_file, save_file

    made = adapters.parent / "made" / corpus
    weights = load_file(str(adapters / corpus / content / "adapter_model.safetensors"))
    save_file(weights, str(made / "adapter_model.safetensors"), {"number": str(number)})
    return adapter_store.store(made, adapters, corpus, "embedded")
