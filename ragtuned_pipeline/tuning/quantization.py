"""The frozen base in 4 bits, for GPUs that do not hold it otherwise.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): weights as 4-bit NormalFloat with their scales
quantised too, computed with in bfloat16. The adapter is trained through them and stored as one of
the base itself, which is how it is served: what 4 bits change in the base is a small part of what
tuning adds, and the paper's adapters are used so as well.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.base_models import load_model
from ragtuned_pipeline.settings import SettingsError, TuningSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_quantization(settings: TuningSettings) -> None:
    """Raise SettingsError where the settings ask for 4 bits that this installation cannot give."""
    if settings.quantization == "none":
        return
    if find_spec("bitsandbytes") is None:
        raise SettingsError(
            'setting tuning.quantization: "nf4" needs the package bitsandbytes; install it '
            "(pip install 'ragtuned-pipeline[quantization]'), or set it to \"none\""
        )
    if settings.parallel == "fsdp":
        raise SettingsError(
            'setting tuning.quantization: "nf4" is not used with tuning.parallel = "fsdp", which '
            'spreads the base instead; set one of them to its default ("none", "ddp")'
        )


def load_quantized(base_model: str) -> PreTrainedModel:
    """Return the base model with its linear layers in 4 bits, on the device that trains.

    As PEFT's prepare_model_for_kbit_training, the weights are frozen and norms are in float32;
    embeddings and head stay in bfloat16, as in QLoRA's own code: in float32 they would need as much
    memory as all layers of a small model in 4 bits.

    Raises:
        SettingsError: it cannot be loaded.
    """
    import torch
    import transformers

    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    make: Any = transformers.BitsAndBytesConfig
    config = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = load_model(base_model, "bfloat16", quantization_config=config, device_map={"": device})
    for weight in model.parameters():
        weight.requires_grad = False
        if weight.ndim == 1 and weight.is_floating_point():
            weight.data = weight.data.float()
    return model
