"""A plan is near what a teacher is then asked: on the samples, with the scripted teacher."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ragtuned_pipeline.corpus.chunking import chunk_documents
from ragtuned_pipeline.corpus.readers import read_folder
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.inference.calls import Call, Completed, Outcome, T
from ragtuned_pipeline.inference.completions import Usage
from ragtuned_pipeline.inference.plan import by_characters
from ragtuned_pipeline.orchestration.planning import ask_everything, plan_teaching
from ragtuned_pipeline.settings import load_settings
from ragtuned_pipeline_tests.scripted import teacher


class Counted:
    """The scripted teacher of a sample; `total` is what it was asked, in tokens as planned."""

    def __init__(self, sample: str) -> None:
        self._script = getattr(teacher, sample)
        self.total = Usage()

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        for call in calls:
            named = {"json_schema": {"name": call.schema.__name__}}
            reply = self._script({"response_format": named, "messages": list(call.messages)})
            asked = "\n".join(message["content"] for message in call.messages)
            prompt, made = by_characters([asked, json.dumps(reply)]).tolist()
            self.total += Usage(calls=1, prompt_tokens=prompt, completion_tokens=made)
            yield Completed(call, call.schema.model_validate(reply), prompt, made)


@pytest.mark.parametrize("sample", ["news", "podcast", "journal"])
def test_the_plan_is_within_15_percent(sample: str, tmp_path: Path) -> None:
    api = {"profile": "api", "teacher": {"model": "scripted"}}
    settings = load_settings(tmp_path, overrides=api, environment={})
    read, _ = read_folder(teacher.SAMPLES / sample / "documents", 20)
    documents, units = chunk_documents(read, load_fast_tokenizer("embedded"), 500, 100)
    planned = sum(plan_teaching(documents, units, settings, None).values(), Usage())
    asked = Counted(sample)
    ask_everything(documents, units, asked, settings, by_characters)
    assert planned.calls == pytest.approx(asked.total.calls, rel=0.15)
    assert planned.prompt_tokens == pytest.approx(asked.total.prompt_tokens, rel=0.15)
    assert planned.completion_tokens == pytest.approx(asked.total.completion_tokens, rel=0.15)
