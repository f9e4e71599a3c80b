"""Builds the embedded base model: `python -m ragtuned_pipeline.tuning.embedded.build`.

Generated text about invented worlds -> byte-level BPE tokenizer -> a small Llama-type model trained
from scratch -> ragtuned_pipeline/tuning/embedded/model/. Nothing is downloaded and no sample
corpus is read. The same code on the same machine gives the same weights; another processor rounds
sums differently, so there they are alike, not equal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER
from ragtuned_pipeline.tuning.embedded.lessons import Lesson, lessons
from ragtuned_pipeline.tuning.embedded.lexicon import Lexicon, load

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import LlamaForCausalLM

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 5
    vocabulary: int = 4096
    tokenizer_lessons: int = 20_000
    tokenizer_words: int = 2_000_000
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    positions: int = 1024
    steps: int = 4500
    batch_tokens: int = 4096  # padding included
    row_tokens: int = 384  # longer lessons are left out
    muon_rate: float = 0.02  # Muon (Jordan et al. 2024) for matrices, AdamW for the rest
    adam_rate: float = 3e-3
    warm_up: float = 0.02
    worlds: int = 8
    exposures: int = 14
    open_share: float = 0.12
    text_share: float = 0.1
    frame_share: float = 0.5
    text_weight: float = 0.3  # of a token of running text, against one of an answer


def stream(recipe: Recipe, lexicon: Lexicon, seed: int) -> Iterator[Lesson]:
    """Return the endless lessons of the recipe."""
    return lessons(
        seed,
        lexicon,
        worlds=recipe.worlds,
        exposures=recipe.exposures,
        open_share=recipe.open_share,
        text_share=recipe.text_share,
        frame_share=recipe.frame_share,
    )


def train_tokenizer(recipe: Recipe, lexicon: Lexicon) -> Tokenizer:
    """Return a byte-level BPE tokenizer: any text in, the same text out.

    Trained on lessons and on English words at about their counted frequencies, so that ordinary
    words are short although the lessons are about invented names.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Single digits: numbers the model has not met are read like those it has.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = Random(recipe.seed)
    words, counts = zip(*sorted(lexicon.counts.items()), strict=True)
    softened = [count**0.85 for count in counts]  # not all of it "the"

    def texts() -> Iterator[str]:
        for lesson in islice(stream(recipe, lexicon, recipe.seed + 1), recipe.tokenizer_lessons):
            yield f"{lesson.given}\n{lesson.question}\n{lesson.answer}"
        for _ in range(recipe.tokenizer_words // 100):
            drawn = rng.choices(words, softened, k=100)
            yield " ".join(w.capitalize() if rng.random() < 0.15 else w for w in drawn)

    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, recipe: Recipe, folder: Path) -> None:
    """Write the tokenizer with its chat template, as transformers reads it."""
    from transformers import PreTrainedTokenizerFast

    wrapped: Any = PreTrainedTokenizerFast
    wrapped(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(str(folder))


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    """Return the model with its first random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    model: Any = LlamaForCausalLM
    return model(  # type: ignore[no-any-return]
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.positions,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


@dataclass(frozen=True)
class _Row:
    tokens: list[int]
    weights: list[float]  # of each token's loss


def _rows(recipe: Recipe, tokenizer: Tokenizer, group: list[Lesson]) -> list[_Row]:
    """Tokens as the chat template gives them, with the weight of each token's loss."""
    prompts, answers = [], []
    for lesson in group:
        if lesson.question:
            given = f"{lesson.given}\n\n" if lesson.given else ""
            prompts.append(f"{USER}{given}{lesson.question}{END}{ASSISTANT}")
            answers.append(f"{lesson.answer}{END}")
        else:
            prompts.append(ASSISTANT)
            answers.append(f"{lesson.given}{END}")
    encoded = zip(
        group,
        tokenizer.encode_batch(prompts, add_special_tokens=False),
        tokenizer.encode_batch(answers, add_special_tokens=False),
        strict=True,
    )
    rows = []
    for lesson, prompt, answer in encoded:
        weight = 1.0 if lesson.question else recipe.text_weight
        row = _Row(prompt.ids + answer.ids, [0.0] * len(prompt.ids) + [weight] * len(answer.ids))
        if len(row.tokens) <= recipe.row_tokens:
            rows.append(row)
    return rows


def _batches(
    recipe: Recipe, lexicon: Lexicon, tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens, weights), both (rows, length), rows of like length together, without end."""
    source = stream(recipe, lexicon, recipe.seed + 2)
    rng = np.random.default_rng(recipe.seed)
    while True:
        rows = _rows(recipe, tokenizer, list(islice(source, 1024)))
        rows.sort(key=lambda row: len(row.tokens))
        cuts, width = [0], 0
        for number, row in enumerate(rows):
            width = len(row.tokens)
            if (number + 1 - cuts[-1]) * width > recipe.batch_tokens:
                cuts.append(number)
        parts = [rows[a:b] for a, b in zip(cuts, [*cuts[1:], len(rows)], strict=True)]
        for place in rng.permutation(len(parts)):
            part = parts[place]
            shape = (len(part), len(part[-1].tokens))
            tokens, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
            for line, row in enumerate(part):
                tokens[line, : len(row.tokens)] = row.tokens
                weights[line, : len(row.tokens)] = row.weights
            yield tokens, weights


def train_model(
    recipe: Recipe, lexicon: Lexicon, tokenizer: Tokenizer, model: LlamaForCausalLM
) -> list[tuple[int, float]]:
    """Train in place; return (step, mean answer loss) pairs."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[Any] = [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [recipe.muon_rate, recipe.adam_rate]
    curve: list[tuple[int, float]] = []
    losses: list[float] = []
    started, seen = time.perf_counter(), 0
    model.train()
    for step, (tokens, weights) in enumerate(
        islice(_batches(recipe, lexicon, tokenizer), recipe.steps)
    ):
        rate = min(1.0, (step + 1) / (recipe.warm_up * recipe.steps)) * (1 - step / recipe.steps)
        for optimizer, full in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = full * rate
        loss, answer_loss = _loss(model, torch.from_numpy(tokens), torch.from_numpy(weights))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(answer_loss)
        seen += tokens.size
        if (step + 1) % max(1, recipe.steps // 40) == 0:
            curve.append((step + 1, round(float(np.mean(losses)), 4)))
            losses.clear()
            speed = seen / (time.perf_counter() - started)
            _say(
                f"step {step + 1}/{recipe.steps}  answer loss {curve[-1][1]}  {speed:.0f} tokens/s"
            )
    return curve


def _loss(model: LlamaForCausalLM, tokens: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """The weighted mean loss of the next token, and the plain mean over answers."""
    import torch

    targets, weight = tokens[:, 1:], weights[:, 1:]
    counted = weight > 0
    with torch.autocast("cpu", torch.bfloat16):
        # Padding follows the text and attention looks back only, so no mask is needed.
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[counted])
    each = torch.nn.functional.cross_entropy(logits.float(), targets[counted], reduction="none")
    weight = weight[counted]
    answers = each.detach()[weight == 1.0]
    return (each * weight).sum() / weight.sum(), float(answers.mean()) if len(answers) else 0.0


def build(recipe: Recipe, folder: Path) -> None:
    """Build the model into `folder`."""
    import torch

    torch.set_num_threads(2)
    lexicon = load()
    tokenizer = train_tokenizer(recipe, lexicon)
    save_tokenizer(tokenizer, recipe, folder)
    _say(f"tokenizer: {tokenizer.get_vocab_size()} tokens")
    model: Any = new_model(recipe)
    started = time.perf_counter()
    curve = train_model(recipe, lexicon, tokenizer, model)
    minutes = (time.perf_counter() - started) / 60
    model.to(torch.bfloat16).save_pretrained(str(folder))
    made = {"recipe": asdict(recipe), "minutes": round(minutes, 1), "answer_loss": curve}
    (folder / "recipe.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    _say(f"{model.num_parameters():,} parameters in {folder}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    build(Recipe(), EMBEDDED_FOLDER)
