"""A plan is near what a teacher is then asked: on the samples, with the scripted teacher."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline.corpus.chunking import chunk_documents
from ragtuned_pipeline.corpus.readers import read_folder
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.inference.calls import Call, Completed, Outcome, T
from ragtuned_pipeline.inference.completions import Usage
from ragtuned_pipeline.inference.plan import by_characters
from ragtuned_pipeline.orchestration.display import show_plan
from ragtuned_pipeline.orchestration.planning import (
    FolderPlan,
    ask_everything,
    plan_folder,
    plan_teaching,
)
from ragtuned_pipeline.settings import Settings, load_settings
from ragtuned_pipeline_tests.conftest import HARBOUR
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


def api(home: Path, **changes: Any) -> Settings:
    own = {"profile": "api", "teacher": {"model": "scripted"}} | changes
    return load_settings(home, overrides=own, environment={})


def chunked(sample: str) -> tuple[pa.Table, pa.Table]:
    read, _ = read_folder(teacher.SAMPLES / sample / "documents", 20)
    return chunk_documents(read, load_fast_tokenizer("embedded"), 500, 100)


@pytest.mark.parametrize("sample", ["news", "podcast", "journal"])
def test_the_plan_is_within_15_percent(sample: str, tmp_path: Path) -> None:
    settings = api(tmp_path, judge={"engine": "none"})
    documents, units = chunked(sample)
    planned = sum(plan_teaching(documents, units, settings, None).values(), Usage())
    asked = Counted(sample)
    ask_everything(documents, units, asked, settings, by_characters)
    assert planned.calls == pytest.approx(asked.total.calls, rel=0.15)
    assert planned.prompt_tokens == pytest.approx(asked.total.prompt_tokens, rel=0.15)
    assert planned.completion_tokens == pytest.approx(asked.total.completion_tokens, rel=0.15)


def test_the_plan_counts_what_a_judge_will_be_asked(tmp_path: Path) -> None:
    """Six other systems, 20 queries a scope, two orders; and seven systems' answers graded."""
    settings = api(tmp_path, judge={"queries_per_scope": 20, "model": "a judge"})
    planned = plan_teaching(*chunked("podcast"), settings, None)
    assert planned["judging"].calls == 6 * (20 + 20) * 2
    assert planned["grading"].calls == 7 * 20
    assert planned["judging"].prompt_tokens > 500 * planned["judging"].calls
    without = api(tmp_path, judge={"engine": "rules"})
    assert not {"judging", "grading"} & plan_teaching(*chunked("podcast"), without, None).keys()


def test_the_plan_of_tuning_says_what_is_lost_and_why_nothing_can_be_tuned(tmp_path: Path) -> None:
    def plan(**tuning: Any) -> FolderPlan:
        settings = load_settings(tmp_path, overrides={"tuning": tuning}, environment={})
        return plan_folder(HARBOUR, settings, tmp_path / "completions.sqlite")

    short = plan(max_tokens=64)
    assert short.training is not None
    assert short.training.overlong > 0
    assert short.training.warnings[0].startswith(
        f"setting tuning.max_tokens: {short.training.overlong} of "
    )
    assert short.refusal == ""
    none = plan(time_budget_minutes=0.0001)
    assert none.training is None
    assert "too few for any fact; 0.00" in none.refusal


def test_a_plan_beyond_the_budget_says_which_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = api(tmp_path, budget={"max_calls": 3}, judge={"engine": "none"})
    show_plan(plan_folder(HARBOUR, settings, tmp_path / "completions.sqlite"), settings)
    shown = capsys.readouterr().out
    assert "local question" in shown
    assert "over the limit budget.max_calls = 3" in shown
