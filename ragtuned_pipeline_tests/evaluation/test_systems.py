import json
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ragtuned_pipeline.evaluation.queries import build_queries
from ragtuned_pipeline.evaluation.systems import SYSTEMS, Answered, Setup, SkippedSystem, answer_all
from ragtuned_pipeline.evaluation.systems import long_context as long
from ragtuned_pipeline.evaluation.systems import vanilla_rag as rag
from ragtuned_pipeline.inference.engine import ANSWER_LENGTH
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import check_schema, table
from ragtuned_pipeline_tests.evaluation import world


@pytest.fixture
def queries() -> pa.Table:
    pairs = world.qa_pairs()
    rows = world.training_rows(pairs)
    made, _ = build_queries(
        pairs, rows, world.new_wording(), None, world.documents(), world.settings()
    )
    return made


@pytest.fixture
def chat_model(tmp_path: Path) -> str:
    """A folder that looks like a chat model: a word tokenizer and a context of 200 tokens."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "llama", "max_position_embeddings": 600}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def setup(model: str, **settings: int) -> Setup:
    return Setup(
        world.documents(),
        world.settings(**settings),
        model,
        Path("adapter"),
        load_engine=world.Parrot,
    )


def test_tuned_has_the_adapter_and_base_has_none(queries: pa.Table, chat_model: str) -> None:
    world.Parrot.loaded = []
    for name in ("tuned", "base"):
        answered = answer_all(name, queries, setup(chat_model, batch_size=7))
        assert isinstance(answered, Answered)
        check_schema("answers", answered.answers)
        assert answered.answers.column("answer").to_pylist() == queries["question"].to_pylist()
        assert set(answered.answers.column("system").to_pylist()) == {name}
        assert answered.answers.column("seconds").to_pylist() == [0.5] * queries.num_rows
    assert world.Parrot.loaded == [(chat_model, Path("adapter"), 7), (chat_model, None, 7)]


def test_without_an_adapter_the_tuned_system_is_skipped(queries: pa.Table) -> None:
    skipped = answer_all("tuned", queries, Setup(world.documents(), world.settings(), "m", None))
    assert skipped == SkippedSystem("There is no adapter for this corpus yet; tune it first.")


def test_all_are_told_the_same_about_length(chat_model: str) -> None:
    told = setup(chat_model).conversation("Who?")
    assert [m["content"] for m in told] == [ANSWER_LENGTH, "Who?"]
    assert [m["content"] for m in setup("embedded").conversation("Who?")] == ["Who?"]


def test_chunks_cover_the_text_and_overlap() -> None:
    documents = world.documents().slice(0, 1)
    text = documents["text"][0].as_py()
    chunks = rag.cut(documents, 60, 20)
    assert all(len(chunk.text) <= 60 for chunk in chunks)
    places = [text.index(chunk.text) for chunk in chunks]
    ends = [place + len(chunk.text) for place, chunk in zip(places, chunks, strict=True)]
    assert places[0] == 0
    assert ends[-1] == len(text)
    assert all(later < end for later, end in zip(places[1:], ends, strict=False))
    assert all(text[place - 1] == " " for place in places[1:])
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_a_text_without_white_space_is_cut_anyway() -> None:
    row = world.documents().slice(0, 1).to_pylist()[0] | {"text": "x" * 250}
    chunks = rag.cut(table("documents", [row]), 100, 10)
    assert [len(chunk.text) for chunk in chunks] == [100, 100, 70]


def test_the_extractive_reader_quotes_the_stating_sentence(
    queries: pa.Table, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "follows_instructions", False)
    answered = answer_all("vanilla_rag", queries, setup(chat_model))
    assert isinstance(answered, Answered)
    assert "extractive reader" in answered.description
    said = dict(zip(queries["id"].to_pylist(), answered.answers.to_pylist(), strict=True))
    asked = {row["question"]: row["id"] for row in queries.to_pylist()}
    row = said[asked["Who rows the ferry? (wording 4)"]]
    assert row["answer"] == "Ada Renk rows the ferry to Quell."
    assert row["context_ids"]
    assert row["prompt_tokens"] > row["completion_tokens"] > 0
    # A name that the corpus does not have: the reader declines.
    assert said[asked["Who is Zorn Quill number 1?"]]["answer"] == rag.UNKNOWN


def test_the_reader_does_not_quote_what_the_question_says() -> None:
    text = "# The ferry to Quell\n\nAda Renk rows it, by day and by night."
    reader = rag.Reader([text])
    assert reader.read('Who rows, by "The ferry to Quell"?', [text]).startswith("Ada Renk")


def test_the_reader_keeps_to_the_answer_tokens(
    queries: pa.Table, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "follows_instructions", False)
    answered = answer_all("vanilla_rag", queries, setup(chat_model, max_answer_tokens=8))
    assert isinstance(answered, Answered)
    assert max(answered.answers["completion_tokens"].to_pylist()) <= 8


def test_a_chat_model_reads_the_chunks(queries: pa.Table, chat_model: str) -> None:
    answered = answer_all("vanilla_rag", queries, setup(chat_model))
    assert isinstance(answered, Answered)
    read = answered.answers["answer"].to_pylist()[0]
    assert "Mirela Voss" in read or "Quell" in read
    assert read.endswith(queries["question"][0].as_py())


def test_long_context_takes_all_of_the_corpus_or_none(queries: pa.Table, chat_model: str) -> None:
    answered = answer_all("long_context", queries, setup(chat_model))
    assert isinstance(answered, Answered)
    assert all(
        all(text in answer for text in world.documents()["text"].to_pylist())
        for answer in answered.answers["answer"].to_pylist()
    )
    skipped = answer_all("long_context", queries, setup(chat_model, max_answer_tokens=500))
    assert isinstance(skipped, SkippedSystem)
    assert "does not fit into the base model's context of 600 tokens" in skipped.reason


def test_the_embedded_model_is_not_given_long_contexts(
    queries: pa.Table, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "follows_instructions", False)
    skipped = long.prepare(setup(chat_model))
    assert isinstance(skipped, SkippedSystem)
    assert "never been taught to read a text" in skipped.reason


def test_an_unknown_system_is_named(queries: pa.Table) -> None:
    with pytest.raises(SettingsError, match="'oracle' is not one of tuned, base"):
        answer_all("oracle", queries, setup("embedded"))


def test_the_default_settings_ask_systems_that_exist() -> None:
    assert set(world.settings().systems) <= SYSTEMS.keys()
