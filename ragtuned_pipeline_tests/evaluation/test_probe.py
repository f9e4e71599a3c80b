"""The built-in probe: its items, what it reads of models of known worth, and the comparison."""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from ragtuned_pipeline.evaluation.probe import ability_summary, built_in, probe
from ragtuned_pipeline.evaluation.probe.likelihood import Likelihood
from ragtuned_pipeline.evaluation.probe.rows import probe_rows
from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER, load_model, load_tokenizer
from ragtuned_pipeline.settings import ProbeSettings
from ragtuned_pipeline.tables import check_schema, table

SETTINGS = ProbeSettings()


def scores(rows: pa.Table, suite: str) -> dict[str, float]:
    chosen = rows.filter(pc.equal(rows["suite"], suite)).to_pylist()
    return {row["item"]: row["score"] for row in chosen}


def as_tuned(rows: pa.Table) -> pa.Table:
    return rows.set_column(
        rows.schema.get_field_index("model"), "model", pa.array(["tuned"] * len(rows))
    )


def compared(base: pa.Table, tuned: pa.Table) -> dict[str, Any]:
    return ability_summary(pa.concat_tables([base, tuned]), seed=1)


def adapter(folder: Path, noise: float) -> Path:
    """An adapter of the embedded model that adds noise of this size; none at all with 0."""
    torch.manual_seed(3)
    model = get_peft_model(
        load_model("embedded", "float32"), LoraConfig(r=8, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if ".lora_B." in name:
                weights.copy_(noise * torch.randn_like(weights))
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def base() -> pa.Table:
    return probe("embedded", None, SETTINGS)


# The items.


def words(sentence: str) -> Counter[str]:
    return Counter(sentence.lower().strip(".?").replace(",", "").split())


def test_word_frequency_alone_cannot_tell_the_grammatical_sentence() -> None:
    right, wrong = defaultdict(Counter), defaultdict(Counter)
    pairs = built_in.items("minimal_pairs")
    for pair in pairs:
        phenomenon = pair["item"].rsplit("-", 1)[0]
        assert pair["good"] != pair["bad"]
        right[phenomenon] += words(pair["good"])
        wrong[phenomenon] += words(pair["bad"])
    assert right == wrong
    assert len({pair["item"] for pair in pairs}) == len(pairs) == 122
    assert len({pair["good"] for pair in pairs}) == 122


def test_the_right_reply_cannot_be_told_without_the_question() -> None:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    asked = built_in.items("choice")
    for item in asked:
        groups[item["item"].rsplit("-", 1)[0]].append(item)
    assert len({item["item"] for item in asked}) == len(asked) == 60
    for group in groups.values():
        replies = {item["answer"] for item in group}
        assert len(replies) == len(group) == 4
        for item in group:
            assert {item["answer"], *item["others"]} == replies
            text = item.get("text", "").lower()
            assert not text or all(reply.lower() in text for reply in replies)
            assert len({each.get("text") for each in group}) == 1


def test_texts_are_short_and_told_apart() -> None:
    texts = built_in.items("language_loss")
    assert len({item["text"] for item in texts}) == len({item["item"] for item in texts}) == 60
    assert all(15 <= len(item["text"].split()) <= 45 for item in texts)


def test_known_forms_are_questions_on_a_document_that_holds_the_reply() -> None:
    asked = built_in.known_forms()
    assert len({lesson.given for lesson in asked}) == len(asked) == 100
    for lesson in asked:
        assert lesson.question
        assert lesson.answer.rstrip(".").lower() in lesson.given.lower()


# What models of known worth score.


class AllKnowing:
    """Finds right what is right."""

    def __init__(self, base_model: str, adapter: Path | None) -> None:
        self._right = {pair["good"] for pair in built_in.items("minimal_pairs")}
        for item in built_in.items("choice"):
            asked = f"{item['text']}\n\n{item['question']}" if "text" in item else item["question"]
            self._right.add(f"{asked} {item['answer']}.")

    def close(self) -> None:
        """There is no model to give back."""

    def of_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([float(t not in self._right) for t in texts]), np.ones(len(texts), int)

    def of_replies(self, asked: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        return self.of_texts([" ".join(each) for each in asked])


class CountsWords(AllKnowing):
    """Reads words without their order, and replies without the question."""

    def of_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        losses = [sum(zlib.crc32(w.encode()) * n for w, n in words(t).items()) for t in texts]
        return np.array(losses, dtype=float), np.ones(len(texts), int)

    def of_replies(self, asked: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        return self.of_texts([reply for _, reply in asked])


def test_a_reader_who_knows_all_scores_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "Likelihood", AllKnowing)
    rows = probe("some/model", None, SETTINGS)
    assert set(scores(rows, "minimal_pairs").values()) == {1.0}
    assert set(scores(rows, "choice").values()) == {1.0}
    assert set(rows["suite"].to_pylist()) == {"minimal_pairs", "choice", "language_loss"}


def test_a_reader_who_counts_words_scores_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "Likelihood", CountsWords)
    rows = probe("some/model", None, SETTINGS)
    pairs = scores(rows, "minimal_pairs")
    # Both sentences of a pair of word order hold the same words, and a tie is not right.
    ordered = [score for item, score in pairs.items() if item.startswith("word_order")]
    assert sum(ordered) == 0
    assert sum(pairs.values()) == (len(pairs) - len(ordered)) / 2
    assert sum(scores(rows, "choice").values()) == 60 / 4


def test_random_weights_score_by_chance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(str(EMBEDDED_FOLDER))
    AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path))
    load_tokenizer("embedded").save_pretrained(str(tmp_path))
    rows = probe(str(tmp_path), None, SETTINGS)
    summary = compared(rows, as_tuned(rows))
    low, high = summary["minimal_pairs"]["base_interval"]
    assert low < summary["minimal_pairs"]["chance"] < high
    low, high = summary["choice"]["base_interval"]
    assert low < summary["choice"]["chance"] < high
    assert summary["language_loss"]["base"] == pytest.approx(math.log(config.vocab_size), abs=0.1)


def test_the_embedded_model_shows_what_it_was_trained_for(base: pa.Table) -> None:
    check_schema("probe", base)
    assert Counter(base["suite"].to_pylist()) == {
        "minimal_pairs": 122,
        "choice": 60,
        "language_loss": 60,
        "known_forms": 100,
    }
    assert set(base["model"].to_pylist()) == {"base"}
    # An untrained model's is ln 4096 = 8.3.
    assert np.mean(list(scores(base, "known_forms").values())) == pytest.approx(4.106, abs=0.05)


def test_an_adapter_that_does_nothing_changes_nothing(base: pa.Table, tmp_path: Path) -> None:
    tuned = probe("embedded", adapter(tmp_path, noise=0.0), SETTINGS)
    assert set(tuned["model"].to_pylist()) == {"tuned"}
    # Read anew, to the last bit.
    assert tuned.select(["suite", "item", "score"]).equals(base.select(["suite", "item", "score"]))
    for suite in compared(base, tuned).values():
        assert suite["change"] == 0
        assert suite["change_interval"] == (0, 0)
        assert suite["tuned"] == suite["base"]


def test_noise_in_the_weights_is_seen(base: pa.Table, tmp_path: Path) -> None:
    damaged = compared(base, probe("embedded", adapter(tmp_path, noise=0.3), SETTINGS))
    for suite in ("known_forms", "language_loss"):
        assert damaged[suite]["change_interval"][0] > 0, damaged[suite]


def test_weights_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="likelihoods are not finite"):
        probe("embedded", adapter(tmp_path, noise=math.nan), SETTINGS)


def test_a_folder_without_an_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        probe("embedded", tmp_path, SETTINGS)


def test_likelihoods_are_those_of_one_text_at_a_time() -> None:
    tokenizer, model = load_tokenizer("embedded"), load_model("embedded", "float32").eval()

    def alone(before: str, counted: str) -> float:
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = tokenizer(before + counted, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            likely = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -sum(float(likely[i - 1, ids[i]]) for i in range(len(start), len(ids)))

    read = Likelihood("embedded", None)
    texts = ["A bell.", "It was too cold to swim in the river, so they walked home.", "Rain"]
    losses, tokens = read.of_texts(texts)
    assert losses == pytest.approx([alone("<|end|>", text) for text in texts], abs=1e-3)
    assert tokens.tolist() == [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    ]
    asked = [("Who rang the bell?", "Tam Orrin."), ("Where?", "In the old tower on the hill.")]
    losses, _ = read.of_replies(asked)
    assert losses == pytest.approx(
        [alone(f"<|user|>{q}<|end|><|assistant|>", f"{a}<|end|>") for q, a in asked], abs=1e-3
    )


# The comparison.


def table_of(suite: str, measure: str, base: Sequence[float], tuned: Sequence[float]) -> pa.Table:
    rows = [
        row
        for model, values in (("base", base), ("tuned", tuned))
        for row in probe_rows(suite, model, measure, zip(map(str, range(99)), values, strict=False))
    ]
    return table("probe", rows)


def test_accuracies_are_compared_item_by_item() -> None:
    before, after = [1.0] * 30 + [0.0] * 30, [1.0] * 20 + [0.0] * 40
    found = ability_summary(table_of("choice", "accuracy", before, after), seed=1)["choice"]
    assert found["measure"] == "accuracy, higher is better"
    assert (found["n"], found["base"], found["chance"]) == (60, 0.5, 0.25)
    assert found["change"] == pytest.approx(-1 / 6)
    # Wilson, and the normal approximation of the mean of sixty differences.
    assert found["base_interval"] == pytest.approx((0.3773, 0.6227), abs=1e-4)
    half = 1.96 * math.sqrt(1 / 6 * 5 / 6 / 60)
    assert found["change_interval"] == pytest.approx((-1 / 6 - half, -1 / 6 + half), abs=0.02)


def test_a_shift_that_all_items_share_is_certain_however_far_they_lie_apart() -> None:
    before = np.linspace(1, 9, 40)
    found = ability_summary(table_of("known_forms", "loss", before, before + 0.25), 1)[
        "known_forms"
    ]
    assert found["measure"] == "loss in nats a token, higher is worse"
    assert found["change_interval"] == pytest.approx((0.25, 0.25))
    low, high = found["base_interval"]
    assert low < 5 < high
    assert high - low > 1


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 20)] * 2), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_the_change_lies_in_its_interval_whatever_the_order_of_rows(
    pairs: list[tuple[float, float]], rng: Any
) -> None:
    rows = table_of("known_forms", "loss", *zip(*pairs, strict=True))
    found = ability_summary(rows, 1)
    suite = found["known_forms"]
    assert suite["change"] == pytest.approx(suite["tuned"] - suite["base"], abs=1e-9)
    shuffled = rows.take(rng.sample(range(len(rows)), len(rows)))
    assert ability_summary(shuffled, 1) == found
    low, high = suite["change_interval"]
    differences = [after - before for before, after in pairs]
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9


def test_models_with_different_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="known_forms: the base and the tuned model have diff"):
        ability_summary(table_of("known_forms", "loss", [1.0, 2.0], [1.0]), 1)
