"""Answers in this process with transformers: batched, greedy, on the GPU where there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragtuned_pipeline.inference.base_models import load_model, load_tokenizer
from ragtuned_pipeline.inference.engine import Message, Reply


class TransformersEngine:
    """A base model, with or without an adapter.

    Args:
        base_model: the setting tuning.base_model.
        adapter: a PEFT adapter folder, or None for the base model alone.
        batch_size: conversations answered at once.

    Raises:
        SettingsError: the base model cannot be loaded.
        FileNotFoundError: there is no adapter in the folder `adapter`.
    """

    def __init__(self, base_model: str, adapter: Path | None = None, batch_size: int = 64) -> None:
        import torch

        if adapter is not None and not (adapter / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"no adapter in {adapter} (no adapter_config.json); tune the corpus first"
            )
        cuda = torch.cuda.is_available()
        self._batch_size = batch_size
        self._tokenizer = load_tokenizer(base_model)
        model: Any = load_model(base_model, "bfloat16" if cuda else "float32")
        if adapter is not None:
            model = _with_adapter(model, adapter, merge=not cuda)
        self._model: Any = model.to("cuda" if cuda else "cpu").eval()
        # Greedy whatever the model's own generation config asks for.
        self._model.generation_config.update(
            do_sample=False, temperature=None, top_p=None, top_k=None
        )

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order, each of at most `max_tokens` tokens."""
        prompts = [
            self._tokenizer.apply_chat_template(
                list(conversation),  # type: ignore[arg-type]  # its own type for the same dicts
                tokenize=False,
                add_generation_prompt=True,
            )
            for conversation in conversations
        ]
        if not prompts:
            return []
        tokens = self._tokenizer(prompts, add_special_tokens=False)["input_ids"]
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(tokens)), key=lambda i: (len(tokens[i]), i))
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            answered = self._generate_batch([tokens[i] for i in batch], max_tokens)
            replies.update(zip(batch, answered, strict=True))
        return [replies[i] for i in range(len(tokens))]

    def close(self) -> None:
        """Give the model's memory back, the GPU's too; the engine answers no more."""
        self._model = None
        give_back_memory()

    def _generate_batch(self, prompts: list[list[int]], max_tokens: int) -> list[Reply]:
        import torch

        started = time.perf_counter()
        inputs = self._tokenizer.pad(
            {"input_ids": prompts}, padding_side="left", return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs, max_new_tokens=max_tokens, pad_token_id=self._tokenizer.pad_token_id
            )
        completions = output[:, inputs["input_ids"].shape[1] :].tolist()
        texts = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
        seconds = (time.perf_counter() - started) / len(prompts)
        stops = self._stop_tokens()
        return [
            Reply(text.strip(), len(prompt), _length(completion, stops), seconds)
            for text, prompt, completion in zip(texts, prompts, completions, strict=True)
        ]

    def _stop_tokens(self) -> set[int]:
        stop = self._model.generation_config.eos_token_id
        return set(stop) if isinstance(stop, list) else {stop}


def give_back_memory() -> None:
    """Free what no one refers to any more, in the GPU's cache too: another process may need it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_adapter(model: Any, adapter: Path, merge: bool) -> Any:
    """Merge in float32 only: there it loses 1e-6 of the adapter's effect, in bfloat16 a fifth."""
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(adapter))
    return tuned.merge_and_unload() if merge else tuned


def _length(completion: list[int], stops: set[int]) -> int:
    """Tokens up to and with the first stop token: what follows it is padding."""
    for position, token in enumerate(completion):
        if token in stops:
            return position + 1
    return len(completion)
