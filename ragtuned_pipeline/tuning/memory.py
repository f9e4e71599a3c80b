"""How much of a training a GPU holds at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.settings import SettingsError, TuningSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes a trained number takes: weight, gradient and AdamW's two moments in float32, and the copy
# that autocast computes with.
_TRAINED_BYTES = 18
# Kept free: the tile of the head's scores, cuBLAS' workspaces, the CUDA context.
_RESERVE_BYTES = 2 << 30
_USABLE = 0.95  # of what is free: the allocator's blocks do not fit each other exactly


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass; an optimizer step is batch_size / rows of them."""

    rows: int  # or packed sequences
    checkpointing: bool


def largest_pass(
    model: PreTrainedModel, settings: TuningSettings, free_bytes: int, most: int
) -> Pass:
    """Return the pass with the most packed sequences, of `most` at most, that the memory holds.

    Gradient checkpointing computes everything forward twice, half of the work again where weights
    are frozen: it is used where not one sequence fits without, or where the settings ask for it.

    Args:
        free_bytes: of the GPU's memory; the model's weights that lie elsewhere go there too.

    Raises:
        SettingsError: the weights alone do not fit.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_cuda)
    fixed = weights + _TRAINED_BYTES * lora_parameters(model, settings.rank) + _RESERVE_BYTES
    room = _USABLE * free_bytes - fixed
    if room <= 0:
        raise SettingsError(
            f"setting tuning.base_model: {settings.base_model} and its adapter need "
            f"{fixed / 2**30:.0f} GiB of GPU memory, and {free_bytes / 2**30:.0f} are free; "
            "choose a smaller base model, or free the GPU"
        )
    layer, layers = _layer_bytes(model), int(model.config.get_text_config().num_hidden_layers)
    fits = [rows for rows in range(1, most + 1) if settings.batch_size % rows == 0]
    if not settings.gradient_checkpointing:
        held = layers * layer * settings.max_tokens
        if held <= room:
            return Pass(max(rows for rows in fits if rows * held <= room), False)
    # The inputs of all layers are kept, and all of one layer while it is computed again.
    width = 2 * model.config.get_text_config().hidden_size
    held = (layers * width + layer) * settings.max_tokens
    return Pass(max((rows for rows in fits if rows * held <= room), default=1), True)


def lora_parameters(model: PreTrainedModel, rank: int) -> int:
    """Return how many numbers LoRA of `rank` on every linear layer but the head trains."""
    import torch

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return rank * sum(
        each.in_features + each.out_features
        for each in model.modules()
        if isinstance(each, torch.nn.Linear) and each is not head
    )


def _layer_bytes(model: PreTrainedModel) -> int:
    """Return what a layer keeps of a token for the way back.

    Counted for a pre-norm layer with a gated feed-forward part: the norms' float32 inputs, the
    queries and answers of attention, and four vectors of the feed-forward width. For
    Qwen2.5-7B that is 209 kB, and 214 kB were measured (docs/performance.md); twice as much is
    counted for the narrow vectors, as other models have more norms in a layer.
    """
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    attended = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    between = config.intermediate_size * (getattr(config, "num_experts_per_tok", None) or 1)
    half = 24 * config.hidden_size + 8 * attended + 8 * between
    return int(half * model.dtype.itemsize // 2)
