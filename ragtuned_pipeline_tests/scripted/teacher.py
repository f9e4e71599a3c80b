"""The scripted teacher of each sample, as a chat server's reply function.

python -m ragtuned_pipeline_tests.chat_server --reply ragtuned_pipeline_tests.scripted.teacher:news
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ragtuned_pipeline
from ragtuned_pipeline_tests.scripted import judging, queries, reports
from ragtuned_pipeline_tests.scripted.graph import GraphScript
from ragtuned_pipeline_tests.scripted.synthesis import SynthesisScript

SAMPLES = Path(ragtuned_pipeline.__path__[0]) / "samples"
_WRITERS = {"journal": "Wenna Tarrowby"}
_GRAPH = {"Extraction", "Gleaning", "Claims", "SameEntity", "Description"}


def news(request: Mapping[str, Any]) -> dict[str, Any]:
    return _reply("news", request)


def podcast(request: Mapping[str, Any]) -> dict[str, Any]:
    return _reply("podcast", request)


def journal(request: Mapping[str, Any]) -> dict[str, Any]:
    return _reply("journal", request)


def _reply(sample: str, request: Mapping[str, Any]) -> dict[str, Any]:
    name, messages = request["response_format"]["json_schema"]["name"], request["messages"]
    if name in _GRAPH:
        return _graph(sample).reply(name, messages)
    if name == "PlainAnswer":
        return {"answer": "I do not know."}
    if name == "CommunityReport":
        return reports.reply(name, messages[:2])
    if name in queries.SCHEMAS:
        return queries.reply(name, messages[:2])
    if name in judging.SCHEMAS:
        return judging.reply(name, messages[:2])
    return SynthesisScript().reply(name, messages[:2])  # a retry adds what was wrong


@cache
def _graph(sample: str) -> GraphScript:
    return GraphScript(SAMPLES / sample / "gold", _WRITERS.get(sample))
