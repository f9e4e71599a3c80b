"""The teacher as the steps get it: opened from the settings, counted, shown while it works."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PrivateAttr

from ragtuned_pipeline.inference.calls import Completed, TeacherStopped
from ragtuned_pipeline.orchestration.steps import UserError
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from ragtuned_pipeline.graph.descriptions import CountTokens
    from ragtuned_pipeline.inference.backend import Backend
    from ragtuned_pipeline.inference.calls import Call, Outcome, T, Teacher
    from ragtuned_pipeline.inference.completions import Usage
    from ragtuned_pipeline.inference.engine import ChatEngine
    from ragtuned_pipeline.orchestration.gpu_of_run import GpuOfRun
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
    """The models of a run: the teacher, the base, what answers; and whose turn the GPU is.

    There is one vLLM server at a time, shared by the steps that ask the same model, whether as the
    teacher, as the judge or to answer; it is stopped where a step needs the GPU for itself.
    """

    _gpu: GpuOfRun | None = PrivateAttr(default=None)

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
        with ExitStack() as opened:
            try:
                backend = opened.enter_context(self._backend(context, home, settings))
            except (SettingsError, TeacherStopped) as error:
                raise UserError(str(error)) from error
            store = opened.enter_context(CompletionStore(home.completions))
            teacher = opened.enter_context(
                LlmTeacher(backend, settings.teacher, store, settings.budget, scope)
            )
            yield ShownTeacher(teacher, lambda: store.usage(scope), context, asset)

    @contextmanager
    def alone(self, context: dg.AssetExecutionContext, home: Home) -> Iterator[None]:
        """Have the GPU in the block, for what this process or a trainer loads: the run's server is
        stopped, and other processes of the home are waited for."""
        with self._gpu_of(context, home).alone(_waits(context)):
            yield

    @contextmanager
    def answering(
        self,
        context: dg.AssetExecutionContext,
        home: Home,
        settings: Settings,
        adapter: Path | None,
        batch_size: int,
    ) -> Iterator[ChatEngine]:
        """Yield the base model, with an adapter or without one, as evaluation.engine says.

        Args:
            adapter: the folder of a stored one.
            batch_size: conversations at once, where this process answers.

        Raises:
            SettingsError: the base model cannot be loaded.
        """
        model = settings.tuning.base_model
        if settings.evaluation.engine == "vllm":
            from ragtuned_pipeline.inference.vllm_engine import VllmEngine
            from ragtuned_pipeline.tuning.adapter_store import adapter_shape

            # One of an earlier setting may have a higher rank.
            rank = max(settings.tuning.rank, adapter_shape(adapter)[0] if adapter else 0)
            server = self._gpu_of(context, home).server(model, rank, settings, _waits(context))
            with server as managed:
                yield VllmEngine(managed, adapter, settings.teacher)
            return
        from ragtuned_pipeline.inference.transformers_engine import TransformersEngine

        with (
            self.alone(context, home),
            closing(TransformersEngine(model, adapter, batch_size)) as engine,
        ):
            yield engine

    @contextmanager
    def base(
        self,
        context: dg.AssetExecutionContext,
        home: Home,
        settings: Settings,
        teacher: ShownTeacher,
    ) -> Iterator[ChatEngine | None]:
        """Yield the base model as it is before tuning, to ask what it knows already.

        The managed server holds the GPU: where it serves another model as the teacher there is no
        room for the base, and nothing is asked.

        Raises:
            UserError: the base model cannot be loaded.
        """
        from ragtuned_pipeline.inference.base_models import identity
        from ragtuned_pipeline.inference.taught_base import TaughtBase

        try:
            if settings.teacher.engine == "vllm":
                same = teacher_model(settings) == identity(settings.tuning.base_model)
                yield TaughtBase(teacher) if same else None
                return
            if settings.teacher.engine == "transformers":  # then the GPU is this process's
                own = {"engine": "transformers"}
                evaluation = settings.evaluation.model_copy(update=own)
                settings = settings.model_copy(update={"evaluation": evaluation})
            batch_size = settings.evaluation.batch_size
            with self.answering(context, home, settings, None, batch_size) as engine:
                yield engine
        except (SettingsError, TeacherStopped) as error:
            raise UserError(str(error)) from error

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        if self._gpu is not None:
            self._gpu.end()
            self._gpu = None

    @contextmanager
    def _backend(
        self, context: dg.AssetExecutionContext, home: Home, settings: Settings
    ) -> Iterator[Backend]:
        teacher = settings.teacher
        model = teacher.model or settings.tuning.base_model
        if teacher.engine == "transformers":
            from ragtuned_pipeline.inference.transformers_backend import TransformersBackend

            with self.alone(context, home):
                yield TransformersBackend(model)
        elif teacher.engine == "vllm":
            from ragtuned_pipeline.inference.base_models import identity

            answers = settings.evaluation.engine == "vllm"
            answers = answers and identity(model) == identity(settings.tuning.base_model)
            rank = settings.tuning.rank if answers else 0
            server = self._gpu_of(context, home).server(model, rank, settings, _waits(context))
            with server as managed:
                yield managed.backend()
        else:
            from ragtuned_pipeline.inference.openai_backend import OpenAIBackend

            yield OpenAIBackend(teacher)

    def _gpu_of(self, context: dg.AssetExecutionContext, home: Home) -> GpuOfRun:
        from ragtuned_pipeline.orchestration.gpu_of_run import GpuOfRun

        if self._gpu is None:
            self._gpu = GpuOfRun(home.folder, f"a run of corpus {context.partition_key!r}")
        return self._gpu


def _waits(context: dg.AssetExecutionContext) -> Callable[[str], None]:
    """Return what shows that a step waits for the GPU."""
    return lambda reason: context.log.info(json.dumps({"waiting": {"why": reason}}))
