"""The teacher as the steps get it: opened from the settings, counted, shown while it works."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PrivateAttr

from ragtuned_pipeline.inference.calls import Completed, TeacherStopped
from ragtuned_pipeline.orchestration.steps import UserError
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ragtuned_pipeline.graph.descriptions import CountTokens
    from ragtuned_pipeline.inference.backend import Backend
    from ragtuned_pipeline.inference.calls import Call, Outcome, T, Teacher
    from ragtuned_pipeline.inference.completions import Usage
    from ragtuned_pipeline.inference.engine import ChatEngine
    from ragtuned_pipeline.inference.vllm_server import ManagedVllm
    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.settings import Settings

_SHOWN_EVERY = 1.0  # seconds, on the command line
_OBSERVED_EVERY = 20.0  # seconds, in Dagster's UI
_FAILURES_LOGGED = 20  # of a step; all of them are in its failures table


def teacher_model(settings: Settings) -> str:
    """Return the identity of the teacher's weights, part of the key of every stored reply.

    Raises:
        SettingsError: no model is named, or it cannot be found.
    """
    from ragtuned_pipeline.inference.base_models import identity

    teacher = settings.teacher
    if teacher.engine != "openai":
        return identity(teacher.model or settings.tuning.base_model)
    if not teacher.model:
        raise SettingsError(
            f"setting teacher.model: name the model that {teacher.address} should use, "
            "e.g. --set teacher.model=gpt-4o-mini"
        )
    return teacher.model


def teacher_key(settings: Settings) -> dict[str, Any]:
    """Return what a teacher's replies depend on, for `settings_key`; nothing without a teacher.

    Raises:
        UserError: as SettingsError of `teacher_model`.
    """
    teacher = settings.teacher
    if teacher.engine == "none":
        return {}
    try:
        model = teacher_model(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error
    return {
        "teacher": model,
        "temperature": teacher.temperature,
        "seed": teacher.seed,
        "embedding_model": teacher.embedding_model,
    }


def judging_settings(settings: Settings) -> Settings:
    """Return the settings with the judge's model in the teacher's place.

    Raises:
        SettingsError: no model can judge.
    """
    judge, teacher = settings.judge, settings.teacher
    named = {
        name: value
        for name in ("model", "address", "api_key_variable")
        if (value := getattr(judge, name))
    }
    if named:
        teacher = teacher.model_copy(update={"engine": "openai", **named})
    prices = {
        name: value
        for name in ("price_prompt", "price_completion")
        if (value := getattr(judge, name)) is not None
    }
    teacher = teacher.model_copy(update=prices)
    if teacher.engine == "none":
        raise SettingsError(
            "setting judge.engine = teacher: there is no teacher (teacher.engine = none); name a "
            "judge with judge.model and judge.address, or set judge.engine to rules or none"
        )
    return settings.model_copy(update={"teacher": teacher})


def token_counter(settings: Settings) -> CountTokens:
    """Return how the teacher's tokens are counted beforehand.

    With its own tokenizer where that is at hand; a hosted model's by characters.
    """
    from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
    from ragtuned_pipeline.inference.plan import by_characters

    teacher = settings.teacher
    if teacher.engine == "openai":
        return by_characters
    tokenizer = load_fast_tokenizer(teacher.model or settings.tuning.base_model)

    def count(texts: Sequence[str]) -> np.ndarray:
        import numpy as np

        encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.array([len(each) for each in encoded], dtype=np.int64)

    return count


def embedder(settings: Settings) -> Callable[[Sequence[str]], np.ndarray] | None:
    """Return the function from texts to unit vectors, where an embedding model is set."""
    teacher = settings.teacher
    if not teacher.embedding_model:
        return None
    if teacher.engine != "openai":
        raise UserError(
            f"setting teacher.embedding_model: teacher.engine = {teacher.engine} serves no "
            "embeddings; leave it empty, or use an OpenAI-compatible server that has both"
        )
    from ragtuned_pipeline.inference.embeddings import embed

    return lambda texts: embed(texts, teacher)


@dataclass
class _Count:
    calls: int = 0
    stored: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ShownTeacher:
    """A teacher that counts what passes through it and shows it while the step goes on."""

    def __init__(
        self,
        teacher: Teacher,
        spent: Callable[[], Mapping[str, Usage]],
        context: dg.AssetExecutionContext,
        asset: str,
    ) -> None:
        self._teacher = teacher
        self._spent = spent
        self._context = context
        self._asset = asset
        self._counts: dict[str, _Count] = defaultdict(_Count)
        self._shown = self._observed = time.monotonic()

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        """As Teacher.complete.

        Raises:
            UserError: the teacher stopped; the message says why and what to change.
        """
        try:
            for outcome in self._teacher.complete(calls):
                self._count(outcome)
                yield outcome
        except TeacherStopped as error:
            raise UserError(str(error)) from error

    def usage(self) -> pa.Table:
        """Return the table teacher_usage: what this step's tables are made of."""
        rows = [
            {
                "step": step,
                "calls": count.calls,
                "failed": count.failed,
                "prompt_tokens": count.prompt_tokens,
                "completion_tokens": count.completion_tokens,
            }
            for step, count in sorted(self._counts.items())
        ]
        return table("teacher_usage", rows)

    def metadata(self) -> dict[str, Any]:
        """Return what was asked and what this run has spent so far, for Dagster's UI."""
        return {
            f"teacher/{step}": f"{count.calls:,} calls ({count.stored:,} from the store), "
            f"{count.failed:,} failed, {count.prompt_tokens:,} + {count.completion_tokens:,} tokens"
            for step, count in sorted(self._counts.items())
        } | {
            f"run/{name}": round(value, 4) for name, value in asdict(_total(self._spent())).items()
        }

    def _count(self, outcome: Outcome[Any]) -> None:
        count = self._counts[outcome.call.step]
        count.calls += 1
        if isinstance(outcome, Completed):
            count.stored += outcome.stored
            count.prompt_tokens += outcome.prompt_tokens
            count.completion_tokens += outcome.completion_tokens
        else:
            count.failed += 1
            if count.failed <= _FAILURES_LOGGED:
                self._context.log.warning(
                    f"{outcome.call.step} of {outcome.call.item_id} failed: {outcome.reason}"
                )
        now = time.monotonic()
        if now - self._shown >= _SHOWN_EVERY:
            self._shown = now
            self._show(outcome.call.step, count)
        if now - self._observed >= _OBSERVED_EVERY:
            self._observed = now
            self._observe()

    def _show(self, step: str, count: _Count) -> None:
        spent = _total(self._spent())
        line = {
            "step": step,
            "calls": count.calls,
            "stored": count.stored,
            "failed": count.failed,
            "tokens": spent.prompt_tokens + spent.completion_tokens,
            "money": round(spent.money, 4),
        }
        self._context.log.info(json.dumps({"teacher": line}))

    def _observe(self) -> None:
        self._context.log_event(
            dg.AssetObservation(
                self._asset, partition=self._context.partition_key, metadata=self.metadata()
            )
        )


def account(teacher: ShownTeacher | None) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table teacher_usage of a step and its metadata; both empty without a teacher."""
    if teacher is None:
        return table("teacher_usage", []), {}
    return teacher.usage(), teacher.metadata()


def _total(usage: Mapping[str, Usage]) -> Usage:
    from ragtuned_pipeline.inference.completions import Usage

    return sum(usage.values(), Usage())


class TeacherResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The teacher; a vLLM server that it starts is shared by the steps and stopped with the run."""

    _managed: ManagedVllm | None = PrivateAttr(default=None)

    @contextmanager
    def open(
        self, context: dg.AssetExecutionContext, home: Home, settings: Settings, asset: str
    ) -> Iterator[ShownTeacher | None]:
        """Yield the teacher for one step, None where no teacher is set (teacher.engine).

        Args:
            asset: the step's first asset, where progress is shown.

        Raises:
            UserError: it cannot be opened; the message names the setting.
        """
        from ragtuned_pipeline.inference.completions import CompletionStore, Scope
        from ragtuned_pipeline.inference.teacher import LlmTeacher

        if settings.teacher.engine == "none":
            yield None
            return
        scope = Scope(context.run.run_id, context.partition_key)
        try:
            backend = self._backend(home, settings)
        except (SettingsError, TeacherStopped) as error:
            raise UserError(str(error)) from error
        with (
            CompletionStore(home.completions) as store,
            LlmTeacher(backend, settings.teacher, store, settings.budget, scope) as teacher,
        ):
            yield ShownTeacher(teacher, lambda: store.usage(scope), context, asset)

    def stop(self) -> None:
        """Stop the managed server and give its GPU back; nothing where none runs."""
        if self._managed is not None:
            self._managed.stop()
            self._managed = None

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        self.stop()

    def _backend(self, home: Home, settings: Settings) -> Backend:
        teacher = settings.teacher
        model = teacher.model or settings.tuning.base_model
        if teacher.engine == "transformers":
            from ragtuned_pipeline.inference.transformers_backend import TransformersBackend

            return TransformersBackend(model)
        if teacher.engine == "vllm":
            from ragtuned_pipeline.inference.vllm_server import ManagedVllm

            if self._managed is None:
                self._managed = ManagedVllm(model, teacher, settings.vllm, home.folder / "logs")
            return self._managed.backend()
        from ragtuned_pipeline.inference.openai_backend import OpenAIBackend

        return OpenAIBackend(teacher)

    @contextmanager
    def base(self, settings: Settings, teacher: ShownTeacher) -> Iterator[ChatEngine | None]:
        """Yield the base model as it is before tuning, to ask what it knows already.

        The managed server holds the GPU: where it serves another model there is no room for the
        base, and nothing is asked.

        Raises:
            UserError: the base model cannot be loaded.
        """
        from ragtuned_pipeline.inference.base_models import identity
        from ragtuned_pipeline.inference.taught_base import TaughtBase
        from ragtuned_pipeline.inference.transformers_engine import TransformersEngine

        model = settings.tuning.base_model
        try:
            if settings.teacher.engine == "vllm":
                same = teacher_model(settings) == identity(model)
                yield TaughtBase(teacher) if same else None
                return
            engine = TransformersEngine(model, batch_size=settings.evaluation.batch_size)
        except SettingsError as error:
            raise UserError(str(error)) from error
        try:
            yield engine
        finally:
            engine.close()
