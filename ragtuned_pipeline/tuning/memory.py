"""How much memory a training takes, and how much of it a GPU holds at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.packed_attention import attention_is_known, head_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes a trained number takes: weight, gradient and AdamW's two moments in float32, and the copy
# that autocast computes with.
_TRAINED_BYTES = 18
# A number in nf4: 4 bits, the 8-bit scale of each 64, and the float32 scale of each 256 of those.
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# A soft-capped score that plain attention keeps: the capped one, and its share in float32 and as it
# is used; in float32 throughout the last two are one.
_SCORE_BYTES = 8
# Kept free: the tile of the head's scores, cuBLAS' workspaces, the CUDA context.
_RESERVE_BYTES = 2 << 30
_USABLE = 0.95  # of what is free: the allocator's blocks do not fit each other exactly
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass; an optimizer step is batch_size / rows of them."""

    rows: int  # or packed sequences
    checkpointing: bool


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model, counted in numbers.

    Attributes:
        linear: of the linear layers but the head, which LoRA adapts and nf4 quantises.
        head: of the linear layer that scores the vocabulary; also where it is the embedding.
        lora: that LoRA of rank 1 trains on the linear layers but the head.
        capped: heads whose scores are soft-capped (Gemma 2): plain attention keeps these; else 0.
        attended: width of the queries of all heads.
        between: width of the feed-forward part, of all experts that a token is given to.
        packable: whether several packed sequences can lie in a pass, in 16 bits and on a GPU that
            is new enough (packed_attention.py).
    """

    parameters: int
    linear: int
    head: int
    lora: int
    capped: int
    layers: int
    hidden: int
    attended: int
    between: int
    packable: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Return the shape of a model, which may be on PyTorch's meta device, without numbers."""
        config: Any = model.config.get_text_config()
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        linear = linear_layers(model)
        heads = config.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            linear=sum(each.in_features * each.out_features for each in linear),
            head=head.in_features * head.out_features,
            lora=sum(each.in_features + each.out_features for each in linear),
            capped=heads if getattr(config, "attn_logit_softcapping", None) else 0,
            layers=int(config.num_hidden_layers),
            hidden=config.hidden_size,
            attended=heads * head_width(config),
            between=config.intermediate_size * (getattr(config, "num_experts_per_tok", None) or 1),
            packable=attention_is_known(model),
        )


@dataclass(frozen=True)
class MemoryNeed:
    """What a training takes of one device, in bytes.

    Attributes:
        adapter: with its gradients and the optimizer's moments.
        activations: what a forward pass keeps for the way back.
        reserve: kept free for workspaces.
    """

    weights: int
    adapter: int
    activations: int
    reserve: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.reserve

    def fits(self, free_bytes: int) -> bool:
        return self.total <= usable(free_bytes)


def usable(free_bytes: int) -> float:
    """Return how much of a device's free memory a training can use."""
    return _USABLE * free_bytes


def memory_need(
    shape: ModelShape, settings: TuningSettings, one_pass: Pass, tokens: int, devices: int = 1
) -> MemoryNeed:
    """Return what a training takes of each of its devices.

    Args:
        tokens: of a row, or of a packed sequence.
        devices: with the setting tuning.parallel = fsdp they share weights and adapter.
    """
    item = _ITEM_BYTES[settings.dtype]
    linear = shape.linear * (_NF4_BYTES if settings.quantization == "nf4" else item)
    weights = linear + (shape.parameters - shape.linear) * item
    weights, adapter = _of_each_device(shape, settings, weights, linear, devices)
    activations = one_pass.rows * _row_bytes(shape, item, one_pass.checkpointing, tokens) * tokens
    return MemoryNeed(int(weights), adapter, activations, _RESERVE_BYTES)


def _of_each_device(
    shape: ModelShape, settings: TuningSettings, weights: float, linear: float, devices: int
) -> tuple[float, int]:
    """Return the bytes of the weights and of the adapter that each device holds.

    With fsdp that is a part of all, and two layers whole: one to compute and the next.

    Args:
        weights, linear: bytes of all weights, and of the layers among them.
    """
    adapter = _TRAINED_BYTES * settings.rank * shape.lora
    if settings.parallel != "fsdp" or devices == 1:
        return weights, adapter
    return weights / devices + 2 * linear / max(shape.layers, 1), -(-adapter // devices)


def pass_as_set(settings: TuningSettings, share: int) -> Pass:
    """Return the pass that the settings ask for, where no GPU's memory is looked at.

    Args:
        share: rows of an optimizer step that one process takes.
    """
    return Pass(most_rows(settings, share, packs=False), settings.gradient_checkpointing)


def most_rows(settings: TuningSettings, share: int, packs: bool) -> int:
    """Return how many rows or packed sequences of `share` a pass may hold.

    Args:
        packs: whether attention keeps packed rows apart by itself (packed_attention.py); else a
            mask does, which grows with the square of what it covers.
    """
    return share if packs or not settings.packing else 1


def largest_pass(
    model: PreTrainedModel,
    settings: TuningSettings,
    free_bytes: int,
    most: int,
    tokens: int,
    processes: int = 1,
) -> Pass:
    """Return the pass with the most rows of `tokens`, of `most` at most, that the memory holds.

    Args:
        free_bytes: of the GPU's memory; the model's weights that lie elsewhere go there too.
        tokens: of the longest row, or of a packed sequence.
        processes: that share an optimizer step; with tuning.parallel = "fsdp" the base too.

    Raises:
        SettingsError: the weights alone do not fit.
    """
    shape, item = ModelShape.of(model), model.dtype.itemsize
    to_come = _bytes_to_come(model, settings)
    weights, adapter = _of_each_device(shape, settings, to_come, shape.linear * item, processes)
    fixed = weights + adapter + _RESERVE_BYTES
    room = usable(free_bytes) - fixed
    if room <= 0:
        raise SettingsError(
            f"setting tuning.base_model: {settings.base_model} and its adapter need "
            f"{fixed / 2**30:.0f} GiB of GPU memory, and {free_bytes / 2**30:.0f} are free; "
            "choose a smaller base model, or free the GPU"
        )
    return largest_pass_in(shape, settings, room, most, tokens, item)


def largest_pass_in(
    shape: ModelShape,
    settings: TuningSettings,
    room: float,
    most: int,
    tokens: int,
    item_bytes: int | None = None,
) -> Pass:
    """Return the pass with the most rows of `tokens`, of `most` at most, for which `room` suffices.

    Gradient checkpointing computes everything forward twice, half of the work again where weights
    are frozen: it is used where not one row fits without, or where the settings ask for it.

    Args:
        room: bytes beside weights and adapter; where it holds not one row, one is tried.
        most: of one process; the rows of a pass divide it.
        item_bytes: of a number that is computed with; by tuning.dtype unless given.
    """
    item = item_bytes or _ITEM_BYTES[settings.dtype]
    fits = [rows for rows in range(1, most + 1) if most % rows == 0]
    for checkpointing in (settings.gradient_checkpointing, True):
        held = _row_bytes(shape, item, checkpointing, tokens) * tokens
        if held <= room:
            return Pass(max(rows for rows in fits if rows * held <= room), checkpointing)
    return Pass(1, True)


def linear_layers(model: PreTrainedModel) -> list[Any]:
    """Return every linear layer but the head, in 4 bits or not."""
    import torch

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]


def _bytes_to_come(model: PreTrainedModel, settings: TuningSettings) -> int:
    """Return the bytes of the weights that are not on the GPU yet, as they will lie there."""
    there = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_cuda)
    if settings.quantization == "none":
        return there
    whole = [m.weight for m in linear_layers(model) if m.weight.is_floating_point()]
    saved = sum(w.numel() * (w.element_size() - _NF4_BYTES) for w in whole if not w.is_cuda)
    return int(there - saved)


def _row_bytes(shape: ModelShape, item: int, checkpointing: bool, tokens: int) -> int:
    """Return what a pass keeps of one token of a row of `tokens`."""
    layer = _layer_bytes(shape, item) + _SCORE_BYTES * shape.capped * tokens
    if not checkpointing:
        return shape.layers * layer
    # The inputs of all layers are kept, and all of one layer while it is computed again.
    return shape.layers * item * shape.hidden + layer


def _layer_bytes(shape: ModelShape, item: int) -> int:
    """Return what a layer keeps of a token for the way back.

    Counted for a pre-norm layer with a gated feed-forward part: the norms' float32 inputs, the
    queries and answers of attention, and four vectors of the feed-forward width. For
    Qwen2.5-7B that is 209 kB, and 214 kB were measured (docs/performance.md); twice as much is
    counted for the narrow vectors, as other models have more norms in a layer.
    """
    return (24 * shape.hidden + 8 * shape.attended + 8 * shape.between) * item // 2
