"""The thread that the model of local_engine.py works in: no other one touches the model."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.transformers_engine import (
    give_back_memory,
    load_to_answer,
    prompt_tokens,
    stop_tokens,
)
from ragtuned_pipeline.serving.answer_text import AnswerText
from ragtuned_pipeline.serving.chat_request import ChatRequest
from ragtuned_pipeline.serving.interface import Refused
from ragtuned_pipeline.serving.mixed_model import Batch, MixedModel
from ragtuned_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedTokenizerBase

PLACES = 16  # answers written at once
# A temperature below it is greedy: as good as, and logits over 1e-50 are no numbers.
_COLDEST = 1e-5
_RETRY_AFTER = 5.0
_PREFILLED = 512  # tokens of prompts read between two steps, so that running answers go on


@dataclass(frozen=True)
class Piece:
    """A part of an answer's text; `finish` is "stop" or "length" with the last one."""

    text: str
    finish: str | None


@dataclass(eq=False)
class Answer:
    """One request on its way through the model.

    Attributes:
        adapter: as the gateway calls it; `name`, as the model does.
        most: tokens of the answer, at most.
        tell: gets the pieces, in the worker's thread; a Refused in place of the next one.
        tokens: of the answer, so far; a stop token counts.
        gone: nobody reads it any more.
    """

    adapter: str
    request: ChatRequest
    prompt: list[int]
    most: int
    text: AnswerText
    tell: Callable[[Piece | Refused], None]
    name: str = ""
    generator: Generator | None = None
    tokens: list[int] = field(default_factory=list)
    gone: bool = False
    ended: bool = False


@dataclass(frozen=True)
class _Job:
    """What the worker is to do between two tokens, and whom it tells that it has ended."""

    do: Callable[[], None]
    fail: Callable[[Refused], None]


class Worker(threading.Thread):
    """Loads the model, then writes answers until it is stopped.

    Args:
        base_model: the setting tuning.base_model.
        places: answers written at once.

    Attributes:
        ready: done once the model can answer; a SettingsError or TeacherStopped where it cannot.
        ended: why nothing is answered any more; None before.
        running, waiting: the answers being written, and those without a place, oldest first.
        prompt_tokens, completion_tokens: read and written so far.
    """

    def __init__(self, base_model: str, places: int) -> None:
        super().__init__(name="model", daemon=True)
        self.ready = _promise()
        self.ended: str | None = None
        self.running: list[Answer] = []
        self.waiting: deque[Answer] = deque()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._base_model = base_model
        self._places = places
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._job: _Job | None = None  # the one at hand
        self._posting = threading.Lock()  # nothing is posted once the worker has ended
        self._stopping = False
        self._tokenizer: PreTrainedTokenizerBase
        self._context: int | None
        self._stops: set[int]
        self._model: MixedModel
        self._batch: Batch
        self._adapters: dict[str, str] = {}  # names in the model, by adapter
        self._named = 0
        self._leaving: dict[str, list[Future[None]]] = {}  # by name in the model

    # Called from other threads.

    def read_prompt(self, request: ChatRequest) -> list[int]:
        """Return the prompt's tokens.

        Raises:
            Refused: the chat template does not take the messages, or they leave no room for an
                answer.
        """
        from jinja2 import TemplateError

        try:
            (prompt,) = prompt_tokens(self._tokenizer, [request.conversation])
        except TemplateError as error:
            reason = f"the model's chat template does not take them: {error}"
            raise Refused(400, f"messages: {reason}", "messages") from None
        if self._context is not None and len(prompt) >= self._context:
            raise Refused(
                400,
                f"messages: {len(prompt):,} tokens, and the model's context holds "
                f"{self._context:,} with the answer",
                "messages",
            )
        return prompt

    def begin(
        self,
        adapter: str,
        request: ChatRequest,
        prompt: list[int],
        tell: Callable[[Piece | Refused], None],
    ) -> Answer:
        """Let an answer be written; `tell` gets its pieces.

        Raises:
            Refused: the worker has ended.
        """
        most = [request.most] if request.most else []
        room = [self._context - len(prompt)] if self._context else []
        decode = self._tokenizer.decode

        def text(tokens: list[int]) -> str:
            decoded: Any = decode(tokens, skip_special_tokens=True)
            return str(decoded)

        answer = Answer(
            adapter,
            request,
            prompt,
            min(most + room, default=sys.maxsize),
            AnswerText(text, request.stop),
            tell,
        )
        self._post(lambda: self._accept(answer), tell)
        return answer

    def load(self, adapter: str, folder: Path) -> Future[None]:
        """Return what is done once the adapter can be asked; a Refused where it cannot be."""
        loaded = _promise()

        def do() -> None:
            try:
                self._load(adapter, folder)
            except Refused as refused:
                loaded.set_exception(refused)
            else:
                loaded.set_result(None)

        self._post(do, loaded.set_exception)
        return loaded

    def unload(self, adapter: str) -> Future[None]:
        """Return what is done once no answer uses the adapter and its memory is given back."""
        given_back = _promise()

        def do() -> None:
            name = self._adapters.pop(adapter, None)
            if name is None:
                given_back.set_result(None)
            else:
                self._leaving.setdefault(name, []).append(given_back)

        self._post(do, given_back.set_exception)
        return given_back

    def stop(self) -> None:
        """End after the token that is being written; join() waits for it."""
        self._stopping = True
        with self._posting:
            self._jobs.put(_Job(lambda: None, lambda refused: None))

    def _post(self, do: Callable[[], None], fail: Callable[[Refused], None]) -> None:
        with self._posting:
            if self.ended is not None:
                raise Refused(503, self.ended, retry_after=_RETRY_AFTER)
            self._jobs.put(_Job(do, fail))

    # The worker's own thread.

    def run(self) -> None:
        try:
            self._prepare()
            self.ready.set_result(None)
            while not self._stopping:
                self._do_jobs()
                self._admit()
                self._write()
                self._let_go()
        except SettingsError as error:
            self._end(str(error))
            self.ready.set_exception(error)
        except BaseException as error:
            self._end(f"the model can answer no more: {type(error).__name__}: {error}")
            if not self.ready.done():
                self.ready.set_exception(TeacherStopped(self.ended))
            raise
        else:
            self._end("the engine was stopped")

    def _prepare(self) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        self._tokenizer, model = load_to_answer(self._base_model)
        kept = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if model._is_stateful or kept - {DynamicLayer, DynamicSlidingWindowLayer}:
            raise SettingsError(
                f"setting tuning.base_model: {self._base_model} keeps more than the keys and "
                "values of attention, which serving.engine = transformers cannot do; set it to vllm"
            )
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._stops = stop_tokens(model)
        self._model = MixedModel(model)
        self._batch = Batch(self._model)

    def _do_jobs(self) -> None:
        """Do what was posted; wait for something where there is nothing to write."""
        wait = not (self.running or self.waiting)
        while wait or not self._jobs.empty():
            self._job = self._jobs.get()
            self._job.do()
            self._job, wait = None, False

    def _accept(self, answer: Answer) -> None:
        from torch import Generator

        name = self._adapters.get(answer.adapter)
        if name is None:
            answer.tell(Refused(404, f"there is no model {answer.adapter}", "model"))
            return
        answer.name = name
        if answer.request.temperature >= _COLDEST:
            answer.generator = Generator()
            if answer.request.seed is None:
                answer.generator.seed()
            else:
                answer.generator.manual_seed(answer.request.seed)
        self.waiting.append(answer)

    def _load(self, adapter: str, folder: Path) -> None:
        if adapter in self._adapters:
            return
        self._named += 1
        name = f"adapter{self._named}"  # PEFT takes no dots, and corpora may have some
        self._model.load(name, folder)
        self._adapters[adapter] = name

    def _admit(self) -> None:
        """Give the places that are free to the oldest, and write their first tokens.

        Each prompt is read alone: together, all would be as long as the longest.
        """
        import torch

        read = 0
        while self.waiting and len(self.running) < self._places and read < _PREFILLED:
            answer = self.waiting.popleft()
            if answer.gone:
                continue
            self.running.append(answer)
            fresh = Batch(self._model)
            try:
                with torch.inference_mode():
                    logits = fresh.prefill(answer.name, answer.prompt)
            except torch.AcceleratorError:  # after it, the device does nothing right
                raise
            except (RuntimeError, MemoryError) as error:  # as where a long prompt finds no room
                self.running.remove(answer)
                reason = f"the prompt cannot be read: {type(error).__name__}: {error}"
                answer.tell(Refused(503, reason, retry_after=_RETRY_AFTER))
                continue
            read += len(answer.prompt)
            with torch.inference_mode():
                self._batch.join(fresh)
            self._append([answer], logits)
        self.prompt_tokens += read
        self._leave()

    def _write(self) -> None:
        """Write one token of each answer."""
        import torch

        if self.running:
            with torch.inference_mode():
                logits = self._batch.step([answer.tokens[-1] for answer in self.running])
            self._append(self.running, logits)
            self._leave()

    def _append(self, answers: Sequence[Answer], logits: Tensor) -> None:
        for answer, token in zip(answers, _chosen(answers, logits), strict=True):
            answer.tokens.append(token)
            text = answer.text.add(token)
            last = token in self._stops or answer.text.stopped
            answer.ended = last or len(answer.tokens) >= answer.most
            finish = None
            if answer.ended:
                text += answer.text.end()
                finish = "stop" if last or answer.text.stopped else "length"
            answer.tell(Piece(text, finish))
        self.completion_tokens += len(answers)

    def _leave(self) -> None:
        """Free the places of answers that have ended, or that nobody reads any more."""
        stay = [i for i, each in enumerate(self.running) if not (each.ended or each.gone)]
        if len(stay) < len(self.running):
            self._batch.keep(stay)
            self.running = [self.running[i] for i in stay]

    def _let_go(self) -> None:
        """Give back the memory of adapters that are to go and that no answer uses any more."""
        used = {answer.name for answer in (*self.running, *self.waiting)}
        for name in self._leaving.keys() - used:
            self._model.unload(name)
            for given_back in self._leaving.pop(name):
                given_back.set_result(None)

    def _end(self, reason: str) -> None:
        with self._posting:
            self.ended = reason
        refused = Refused(503, reason, retry_after=_RETRY_AFTER)
        for answer in (*self.running, *self.waiting):
            answer.tell(refused)
        if self._job is not None:
            self._job.fail(refused)
        while not self._jobs.empty():
            self._jobs.get().fail(refused)
        for given_back in [each for waiting in self._leaving.values() for each in waiting]:
            given_back.set_result(None)
        self.running, self.waiting, self._leaving = [], deque(), {}
        self.__dict__.pop("_batch", None)
        self.__dict__.pop("_model", None)
        give_back_memory()


def _promise() -> Future[None]:
    """Return what another thread will keep, whether or not one of those who wait gives up."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise


def _chosen(answers: Sequence[Answer], logits: Tensor) -> list[int]:
    """Return the next token of each answer.

    Args:
        logits: answers x vocabulary.
    """
    likeliest: list[int] = logits.argmax(-1).tolist()
    return [
        token if answer.generator is None else _sampled(row, answer.request, answer.generator)
        for answer, row, token in zip(answers, logits, likeliest, strict=True)
    ]


def _sampled(logits: Tensor, request: ChatRequest, generator: Generator) -> int:
    """Return a token by chance, on the CPU: equal seeds are equal there on every machine."""
    scaled = (logits - logits.max()) / request.temperature
    shares, tokens = scaled.softmax(-1).cpu().sort(descending=True, stable=True)
    before = shares.cumsum(0) - shares
    before[0] = -1.0  # the likeliest one always stays: a top_p of 1e-46 is 0 in float32
    shares[before >= request.top_p] = 0.0
    return int(tokens[shares.multinomial(1, generator=generator)])
