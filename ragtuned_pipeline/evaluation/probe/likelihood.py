"""How likely a model finds texts and replies: the loss of every token, summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragtuned_pipeline.inference.base_models import load_model, load_tokenizer
from ragtuned_pipeline.inference.engine import system_message
from ragtuned_pipeline.inference.transformers_engine import give_back_memory
from ragtuned_pipeline.tuning.base_models import TokenRow, encode_rows

_BATCH_TOKENS = 2048  # padding included


class Likelihood:
    """A base model, with or without an adapter, that is read and never asked.

    On a GPU in bfloat16, else in float32. The same texts in the same order give the same numbers
    on the same machine.

    Raises:
        SettingsError: the base model cannot be loaded.
        FileNotFoundError: there is no adapter in the folder `adapter`.
    """

    def __init__(self, base_model: str, adapter: Path | None) -> None:
        import torch

        if adapter is not None and not (adapter / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"no adapter in {adapter} (no adapter_config.json); tune the corpus first"
            )
        cuda = torch.cuda.is_available()
        self._tokenizer = load_tokenizer(base_model)
        self._system = system_message(base_model)
        model: Any = load_model(base_model, "bfloat16" if cuda else "float32")
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
        self._model: Any = model.to("cuda" if cuda else "cpu").eval()

    def close(self) -> None:
        """Give the model's memory back, the GPU's too; it reads no more."""
        self._model = None
        give_back_memory()

    def of_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return each plain text's loss in nats and its number of tokens, both (texts,).

        Before a text stands the tokenizer's BOS token, or EOS where it has none, as in
        lm-evaluation-harness, so that the first word counts too.
        """
        bos: Any = self._tokenizer.bos_token_id
        first: Any = self._tokenizer.eos_token_id if bos is None else bos
        tokens = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return self._losses([TokenRow([first, *ids], 1) for ids in tokens])

    def of_replies(self, asked: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss in nats of each reply and its number of tokens, both (asked,).

        Args:
            asked: (question, reply) pairs, written in the model's chat template. The token that
                ends the reply counts: the loss is that of exactly this reply.
        """
        rows = [(self._system, question, reply) for question, reply in asked]
        return self._losses(encode_rows(self._tokenizer, rows))

    def _losses(self, rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
        counts = np.array([len(row.input_ids) - row.prompt_tokens for row in rows], dtype=np.int64)
        sums = np.empty(len(rows))
        for batch in _batches([len(row.input_ids) for row in rows]):
            sums[batch] = self._batch_losses([rows[i] for i in batch])
        if not np.isfinite(sums).all():
            raise ValueError(
                "the model's likelihoods are not finite: its weights, or the adapter's, are damaged"
            )
        return sums, counts

    def _batch_losses(self, rows: Sequence[TokenRow]) -> np.ndarray:
        import torch

        shape = (len(rows), max(len(row.input_ids) for row in rows))
        tokens, present, counted = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        for line, row in enumerate(rows):
            length = len(row.input_ids)
            tokens[line, :length] = row.input_ids
            present[line, :length] = 1
            counted[line, row.prompt_tokens : length] = 1
        device = self._model.device
        ids = torch.from_numpy(tokens).to(device)
        scored = torch.from_numpy(counted[:, 1:]).to(device).bool()
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids, attention_mask=torch.from_numpy(present).to(device), use_cache=False
            ).logits[:, :-1][scored]
            losses = torch.nn.functional.cross_entropy(
                logits.float(), ids[:, 1:][scored], reduction="none"
            )
        each = np.zeros((shape[0], shape[1] - 1))
        each[counted[:, 1:] == 1] = losses.double().cpu().numpy()
        total: np.ndarray = each.sum(axis=1)
        return total


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield row numbers, rows of like length together, at most _BATCH_TOKENS padded tokens each."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * lengths[number] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
