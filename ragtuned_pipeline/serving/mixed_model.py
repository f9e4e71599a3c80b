"""A model in this process whose rows use an adapter each, and a batch that rows join and leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.serving.interface import Refused

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

_CONFIG = "adapter_config.json"
_NO_ADAPTER = "__base__"  # PEFT's word for a row of the base model alone
_TOKENS_AT_ONCE = 1024  # of a prompt: attention's memory grows with their number


class MixedModel:
    """A base model with adapters beside it, none merged.

    PEFT computes the base model's layers for all rows together and adds to each row what its own
    adapter does (`adapter_names`). Its own way to tell the layers which row is whose goes through
    all modules of all adapters at every token; here hooks that stay do it.

    Args:
        model: as transformers loads it. Its attention must keep keys and values and nothing else.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tuned: Any = None  # PEFT's wrapper, whose layers are in `model` itself
        self._rows: list[str] = []
        self._hooked: set[Any] = set()

    @property
    def device(self) -> Any:
        return self._model.device

    def load(self, name: str, folder: Path) -> None:
        """Take an adapter in. `name` has no dots.

        Raises:
            Refused: it is no LoRA adapter for this model, or one that cannot share a batch.
        """
        from peft import PeftConfig, PeftModel
        from safetensors import SafetensorError

        _check_kind(folder)
        try:
            if self._tuned is None:
                config = PeftConfig.from_pretrained(str(folder))
                self._tuned = PeftModel(self._model, config, adapter_name=name)
            missing = self._tuned.load_adapter(str(folder), adapter_name=name).missing_keys
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            self._forget(name)
            reason = str(error).strip().splitlines()[0]
            raise Refused(400, f"the adapter in {folder} cannot be loaded: {reason}") from error
        if missing:
            self._forget(name)
            raise Refused(400, f"the adapter in {folder} has no weights for {missing[0]}")
        self._tuned.eval()
        self._hook_layers()

    def unload(self, name: str) -> None:
        """Give an adapter's memory back."""
        # None is active: rows name theirs. PEFT would choose another one, and warn of it.
        self._tuned.base_model.set_adapter([])
        self._tuned.delete_adapter(name)

    def logits(
        self, names: Sequence[str | None], tokens: Tensor, mask: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Return what comes after the last token of each row: rows x vocabulary, in float32.

        Args:
            names: of the rows' adapters; None is the base model alone.
            tokens: rows x new tokens.
            mask: rows x (tokens in the cache + new tokens), 0 for padding on the left.
            cache: gets the new tokens too.
        """
        self._rows = [name or _NO_ADAPTER for name in names]
        new = tokens.shape[1]
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -new:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _forget(self, name: str) -> None:
        if self._tuned is not None and name in self._tuned.peft_config:
            self.unload(name)

    def _hook_layers(self) -> None:
        from peft.tuners.lora import LoraLayer

        def tell_rows(_layer: Any, arguments: Any, named: dict[str, Any]) -> Any:
            return arguments, {**named, "adapter_names": self._rows}

        layers: list[Any] = [each for each in self._model.modules() if isinstance(each, LoraLayer)]
        for layer in layers:
            if layer not in self._hooked:
                self._hooked.add(layer)
                layer.register_forward_pre_hook(tell_rows, with_kwargs=True)


class Batch:
    """Rows that are written together, each with its prompt and answer so far in one cache, padded
    on the left.

    Attributes:
        size: the number of rows.
    """

    def __init__(self, model: MixedModel) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model
        self._names: list[str | None] = []
        self._mask = torch.zeros((0, 0), dtype=torch.long, device=model.device)
        # Without the model's config all layers keep all tokens, those of a sliding window too:
        # rows of unlike lengths can share no other cache. The mask does the sliding.
        self._cache = DynamicCache()

    @property
    def size(self) -> int:
        return len(self._names)

    def prefill(self, name: str | None, prompt: Sequence[int]) -> Tensor:
        """Begin with one row, in a batch that is empty; return its logits (1 x vocabulary)."""
        import torch

        self._names = [name]
        tokens = torch.tensor([list(prompt)], device=self._model.device)
        self._mask = torch.ones_like(tokens)
        for start in range(0, len(prompt), _TOKENS_AT_ONCE):
            end = start + _TOKENS_AT_ONCE
            logits = self._model.logits(
                self._names, tokens[:, start:end], self._mask[:, :end], self._cache
            )
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row; return what may come next (rows x vocabulary)."""
        import torch

        self._mask = torch.cat([self._mask, self._mask.new_ones(self.size, 1)], dim=1)
        column = torch.tensor(tokens, device=self._model.device)[:, None]
        return self._model.logits(self._names, column, self._mask, self._cache)

    def join(self, other: Batch) -> None:
        """Put the rows of `other` behind these; `other` is spent."""
        import torch

        if self.size == 0:
            self._mask, self._cache = other._mask, other._cache
        else:
            columns = max(self._mask.shape[1], other._mask.shape[1])
            self._mask = torch.cat([_widened(b._mask, columns, 1) for b in (self, other)])
            for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
                for part in ("keys", "values"):
                    both = (_widened(getattr(layer, part), columns, 2) for layer in (mine, theirs))
                    setattr(mine, part, torch.cat(list(both)))
        self._names += other._names

    def keep(self, places: Sequence[int]) -> None:
        """Drop all rows but those at `places`, and the columns that are padding for all of them."""
        import torch

        self._names = [self._names[place] for place in places]
        index = torch.tensor(list(places), dtype=torch.long, device=self._model.device)
        mask = self._mask[index]
        first = int(mask.any(0).int().argmax()) if len(places) else mask.shape[1]
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            for part in ("keys", "values"):
                setattr(layer, part, getattr(layer, part)[index][:, :, first:])


def _widened(part: Tensor, columns: int, dimension: int) -> Tensor:
    """Zeros on the left of a mask, or of keys or values, up to `columns` columns."""
    import torch

    shape = list(part.shape)
    shape[dimension] = columns - shape[dimension]
    return torch.cat([part.new_zeros(shape), part], dim=dimension)


def _check_kind(folder: Path) -> None:
    """Raise Refused for an adapter that is none, or that cannot share a batch with others."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(400, f"there is no adapter in {folder}: {_CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise Refused(400, f"there is no adapter in {folder}: {_CONFIG} is no JSON object")
    if config.get("peft_type") != "LORA":
        raise Refused(400, f"the adapter in {folder} is no LoRA ({config.get('peft_type')})")
    for name, plain in (("use_dora", False), ("modules_to_save", None), ("bias", "none")):
        if config.get(name, plain) not in (plain, [], False):
            raise Refused(
                400,
                f"the adapter in {folder} has {name} = {config[name]}: it cannot be answered "
                "beside others",
            )
