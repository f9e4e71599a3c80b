"""Where a base model comes from, and how its tokenizer and weights are loaded.

A base model is named by the setting tuning.base_model: "embedded" (the model shipped with this
package), a Hugging Face id, or a local folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.chat_template import settle_template
from ragtuned_pipeline.settings import EMBEDDED_MODEL, SettingsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

EMBEDDED_FOLDER = Path(__file__).parents[1] / "tuning" / "embedded" / "model"


def resolve(base_model: str) -> str:
    """Return what transformers can load: an absolute local folder, or a Hugging Face id.

    Raises:
        SettingsError: `base_model` looks like a folder, and there is no model in it.
    """
    if base_model == EMBEDDED_MODEL:
        return str(EMBEDDED_FOLDER)
    folder = Path(base_model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.absolute())
    if folder.is_dir() or base_model[:1] in "/.~" or base_model.count("/") > 1:
        raise SettingsError(
            f"setting tuning.base_model: {base_model} is no folder with a model (no config.json); "
            "give a folder saved by save_pretrained, a Hugging Face id, or 'embedded'"
        )
    return base_model


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer, with a chat template and a padding token.

    What the template leaves open is settled, see chat_template.py.

    Raises:
        SettingsError: it cannot be loaded, or it has no chat template.
    """
    tokenizer = _load_tokenizer(base_model)
    settle_template(tokenizer)
    return tokenizer


def settled_template(base_model: str) -> str | None:
    """Return the chat template that load_tokenizer settles on; None for the model's own.

    Raises:
        SettingsError: as load_tokenizer.
    """
    if base_model == EMBEDDED_MODEL:
        return None
    tokenizer = _load_tokenizer(base_model)
    return str(tokenizer.chat_template) if settle_template(tokenizer) else None


def _load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _load(base_model, AutoTokenizer.from_pretrained)
    if tokenizer.chat_template is None:
        raise SettingsError(
            f"setting tuning.base_model: {base_model} has no chat template; "
            "choose an instruction-tuned model, or 'embedded'"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_fast_tokenizer(base_model: str) -> Tokenizer:
    """Return the tokenizer alone, for counting and cutting; loads no transformers for a folder.

    Raises:
        SettingsError: it cannot be loaded.
    """
    file = Path(resolve(base_model)) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(file))
    tokenizer: Tokenizer = load_tokenizer(base_model).backend_tokenizer
    return tokenizer


def load_config(base_model: str) -> PretrainedConfig:
    """Return the base model's config; its weights need not be there.

    Raises:
        SettingsError: it cannot be loaded, or the model sees pictures too.
    """
    from transformers import AutoConfig

    config: PretrainedConfig = _load(base_model, AutoConfig.from_pretrained)
    if getattr(config, "vision_config", None) is not None:
        raise SettingsError(
            f"setting tuning.base_model: {base_model} sees pictures too (vision_config in its "
            "config.json), and only models of text alone are tuned; choose such a model"
        )
    return config


def attention(config: PretrainedConfig) -> str:
    """Return how transformers computes a model's attention on this machine.

    Soft-capped scores (Gemma 2) are known to plain attention alone: sdpa would leave the cap out.
    """
    import torch

    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    # On a CPU, for rows as short as ours, plain attention is the fastest (docs/log.md).
    return "sdpa" if torch.cuda.is_available() and not capped else "eager"


def load_generation_config(base_model: str) -> GenerationConfig:
    """Return what the base model generates with unless told otherwise, as load_model reads it.

    Raises:
        SettingsError: it cannot be loaded.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(resolve(base_model))
    except OSError:  # it has none of its own
        return GenerationConfig.from_model_config(load_config(base_model))


def load_model(base_model: str, dtype: str, **how: Any) -> PreTrainedModel:
    """Return the base model with weights of `dtype` ("float32" or "bfloat16"), on the CPU.

    Args:
        how: further arguments of transformers' from_pretrained.

    Raises:
        SettingsError: as load_config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(base_model)
    model: PreTrainedModel = _load(
        base_model,
        AutoModelForCausalLM.from_pretrained,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation=attention(config),
        **how,
    )
    return model


# What else decides what a model is asked and how it answers, where it is there.
_BESIDE = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def identity(base_model: str) -> str:
    """Return a name for the weights themselves, the same on every machine.

    A hub id stands for itself; a folder ("embedded" too) is ``base-<20 hex digits>``, a hash of its
    config, tokenizer, chat template, generation config and weights, wherever it lies.

    Raises:
        SettingsError: the folder has no model, or no tokenizer.json.
    """
    place = Path(resolve(base_model))
    if not place.is_absolute():
        return str(place)
    if not (place / "tokenizer.json").is_file():
        raise SettingsError(
            f"setting tuning.base_model: there is no tokenizer.json in {place}; save the model's "
            "tokenizer there (save_pretrained of a fast one)"
        )
    files = [*sorted(place.glob("*.safetensors")), place / "tokenizer.json"]
    files += [place / name for name in _BESIDE if (place / name).is_file()]
    stats = (each.stat() for each in (place / "config.json", *files))
    state = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
    return _content_identity(place, tuple(files), state)


@cache
def _content_identity(
    place: Path, files: tuple[Path, ...], _state: tuple[tuple[int, int], ...]
) -> str:
    """Hash a model's folder; several steps of a run ask, and weights are gigabytes."""
    digest = hashlib.blake2b(digest_size=10)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return f"base-{digest.hexdigest()}"


def _load(base_model: str, load: Callable[..., Any], **how: Any) -> Any:
    place = resolve(base_model)
    try:
        return load(place, **how)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"setting tuning.base_model: {base_model} cannot be loaded "
            f"({str(error).strip().splitlines()[0]}); where no hub can be reached, "
            "a local folder with the model works too, and so does 'embedded'"
        ) from error
