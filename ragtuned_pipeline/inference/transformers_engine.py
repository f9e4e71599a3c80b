"""Answers in this process with transformers: batched, greedy, on the GPU where there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.base_models import load_model, load_tokenizer
from ragtuned_pipeline.inference.engine import Message, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        if adapter is not None and not (adapter / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"no adapter in {adapter} (no adapter_config.json); tune the corpus first"
            )
        self._batch_size = batch_size
        self._tokenizer, self._model = load_to_answer(base_model)
        if adapter is not None:
            self._model = _with_adapter(self._model, adapter)

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order, each of at most `max_tokens` tokens."""
        if not conversations:
            return []
        tokens = prompt_tokens(self._tokenizer, conversations)
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
        stops = stop_tokens(self._model)
        return [
            Reply(text.strip(), len(prompt), _length(completion, stops), seconds)
            for text, prompt, completion in zip(texts, prompts, completions, strict=True)
        ]


def load_to_answer(base_model: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """Return tokenizer and model: bfloat16 on the GPU where there is one, else float32.

    Greedy and with nothing else that the model's own generation config asks for (a penalty for
    repeating words, above all), as the vLLM servers are: a reply depends on its request alone.

    Raises:
        SettingsError: the base model cannot be loaded.
    """
    import torch
    from transformers import GenerationConfig

    cuda = torch.cuda.is_available()
    tokenizer = load_tokenizer(base_model)
    model: Any = load_model(base_model, "bfloat16" if cuda else "float32")
    own = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, model.to("cuda" if cuda else "cpu").eval()


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[int]]:
    """Return what the model reads of each conversation, up to where its answer begins."""
    prompts = [
        tokenizer.apply_chat_template(
            list(conversation),  # type: ignore[arg-type]  # its own type for the same dicts
            tokenize=False,
            add_generation_prompt=True,
        )
        for conversation in conversations
    ]
    tokens: list[list[int]] = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return tokens


def stop_tokens(model: Any) -> set[int]:
    """Return the tokens that end an answer."""
    stop = model.generation_config.eos_token_id
    return set(stop) if isinstance(stop, list) else {stop}


def give_back_memory() -> None:
    """Free what no one refers to any more, in the GPU's cache too: another process may need it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_adapter(model: Any, adapter: Path) -> Any:
    """Merge in float32 only: there it loses 1e-6 of the adapter's effect, in bfloat16 a fifth."""
    import torch
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    return tuned.merge_and_unload() if model.dtype == torch.float32 else tuned


def _length(completion: list[int], stops: set[int]) -> int:
    """Tokens up to and with the first stop token: what follows it is padding."""
    for position, token in enumerate(completion):
        if token in stops:
            return position + 1
    return len(completion)
