"""Tiny models of several families, with random weights and the families' chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import PreTrainedTokenizerFast

from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER

SIZES: dict[str, Any] = {  # of a model that needs no tokenizer
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # as the models have them
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    ""
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """How a family's models are made and asked.

    `opens` stands before every answer.
    """

    name: str
    architecture: str
    template: str
    tokens: tuple[str, ...]
    stop: str
    opens: str
    sizes: tuple[tuple[str, Any], ...] = ()


_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>")
FAMILIES = [
    Family("qwen2.5", "Qwen2", "qwen2_5", _CHATML, "<|im_end|>", "<|im_start|>assistant\n"),
    Family(
        "qwen3",
        "Qwen3",
        "qwen3",
        (*_CHATML, "<think>", "</think>"),
        "<|im_end|>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        (("head_dim", 16),),
    ),
    Family(
        "llama3.2",
        "Llama",
        "llama3_2",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    Family(
        "mistral",
        "Mistral",
        _MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        "[/INST]",
        (("sliding_window", 64),),
    ),
    Family(
        "gemma2",
        "Gemma2",
        "gemma",
        _GEMMA,
        "<end_of_turn>",
        "<start_of_turn>model\n",
        (("head_dim", 16), ("sliding_window", 64), ("query_pre_attn_scalar", 16)),
    ),
    Family(
        "gemma3",
        "Gemma3",
        "gemma3",
        _GEMMA,
        "<end_of_turn>",
        "<start_of_turn>model\n",
        (("head_dim", 16), ("sliding_window", 64), ("query_pre_attn_scalar", 16)),
    ),
]


def write_model(family: Family, folder: Path) -> Path:
    """Write a model of two layers and its tokenizer, as save_pretrained does."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(EMBEDDED_FOLDER / "tokenizer.json"),
        bos_token=family.tokens[0],
        eos_token=family.stop,
        pad_token="<pad>",
        extra_special_tokens=list(family.tokens),
    )
    # As these families do, and the embedded model does not: line breaks are a token by themselves.
    words = Regex(r"\s*[\r\n]+|\s?[^\s]+|\s+")
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Split(words, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    file = _TEMPLATES / f"{family.template}.jinja"
    tokenizer.chat_template = (
        file.read_text(encoding="utf-8") if len(family.template) < 20 else family.template
    )
    text = "TextConfig" if family.architecture == "Gemma3" else "Config"
    config = getattr(transformers, family.architecture + text)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **dict(family.sizes),
    )
    torch.manual_seed(7)
    model = getattr(transformers, f"{family.architecture}ForCausalLM")(config)
    for weight in model.parameters():  # not so small that every text looks alike
        if weight.ndim > 1:
            weight.data.mul_(8)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
