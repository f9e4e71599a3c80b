"""`ragtuned serve`: a home's promoted adapters behind one address."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.locks import is_held, taken
from ragtuned_pipeline.serving.interface import Engine
from ragtuned_pipeline.serving.promoted import PromotedAdapters
from ragtuned_pipeline.settings import Settings, SettingsError
from ragtuned_pipeline.tuning.adapter_store import adapter_shape, promoted

_LOCK_SECONDS = 1.0  # `running_server` has the lock for a moment, and is no server


class AlreadyServed(RuntimeError):
    """Another process serves the home; the message says which."""


def serve_home(
    home: Home,
    settings: Settings,
    base_model: str,
    corpora: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Serve the promoted adapters until SIGTERM or SIGINT; main thread only.

    Args:
        settings: whose sections `serving`, `vllm` and `tuning` are read.
        base_model: whose adapters are served; see `base_model_of`.
        corpora: only these; empty for all, also those that appear later.
        say: is told, in one line, what happens.

    Raises:
        SettingsError: an API key is missing, an address cannot be had, there is no such model.
        TeacherStopped: the engine cannot be started, or ended again and again.
        AlreadyServed: another process serves this home.
    """
    from ragtuned_pipeline.serving.gateway import gateway
    from ragtuned_pipeline.serving.metrics import Metrics
    from ragtuned_pipeline.serving.requests import Defaults
    from ragtuned_pipeline.serving.running import address_of, listening, run
    from ragtuned_pipeline.serving.service import Service

    serving = settings.serving
    key = _api_key(settings)
    metrics = Metrics()
    adapters = PromotedAdapters(home.adapters, base_model, corpora)
    turn = None if serving.share_gpu else GpuTurn(home.folder, "ragtuned serve")
    with _alone(home), listening(serving.host, serving.port) as listener:
        engine = _engine(home, settings, base_model, adapters, turn)
        service = Service(engine, adapters, metrics, serving.drain_seconds, say, turn)
        defaults = Defaults.of(base_model, serving.max_tokens)
        app = gateway(service, metrics, defaults, key, serving.max_requests)
        note: dict[str, Any] = {
            "address": address_of(listener),
            "pid": os.getpid(),
            "engine": serving.engine,
            "base_model": base_model,
        }
        say(f"serving {home.folder} at {note['address']} ({serving.engine}, {base_model})")
        wanted = adapters.look()
        for corpus, reason in wanted.unserved.items():
            say(f"{corpus}: not served: {reason}")
        example = next(iter(wanted.adapters), "N")
        say(f"try: {_curl(note['address'], example, serving.api_key_variable if key else '')}")
        with _noted(home, note):
            run(app, service, listener, serving.drain_seconds)


def base_model_of(home: Home, corpora: Collection[str], otherwise: str) -> str:
    """Return the base model that the settings of `corpora` name, of all that have a promoted
    adapter where that is empty; `otherwise` where they name several, or none."""
    asked = corpora or [name for name in home.names() if promoted(home.adapters, name)]
    named = {home.settings(corpus).tuning.base_model for corpus in asked}
    return named.pop() if len(named) == 1 else otherwise


def running_server(home: Home) -> dict[str, Any] | None:
    """Return address, pid, engine and base_model of the server of a home; None where none runs."""
    lock = _lock_file(home)
    return _read_note(home) if lock.is_file() and is_held(lock) else None


def _engine(
    home: Home,
    settings: Settings,
    base_model: str,
    adapters: PromotedAdapters,
    turn: GpuTurn | None,
) -> Engine:
    if settings.serving.engine == "transformers":
        from ragtuned_pipeline.serving.local_engine import LocalEngine

        return LocalEngine(base_model)
    from ragtuned_pipeline.inference.vllm_server import lora_rank
    from ragtuned_pipeline.serving.vllm_engine import VllmServing

    ranks = []
    for each in adapters.look().adapters.values():
        with suppress(OSError, ValueError):  # load() says so, of that adapter alone
            ranks.append(lora_rank(adapter_shape(each.folder)[0]))
    return VllmServing(
        base_model,
        settings.vllm,
        home.folder / "logs" / "serving.log",
        max(ranks, default=settings.tuning.rank),
        settings.serving.max_tokens,
        inherited=turn.inherited if turn else tuple,
    )


def _curl(address: str, corpus: str, key_variable: str) -> str:
    """Return a command line that asks a question; `key_variable` is empty without an API key."""
    body = {"model": corpus, "messages": [{"role": "user", "content": "..."}]}
    key = f' -H "Authorization: Bearer ${key_variable}"' if key_variable else ""
    return (
        f"curl {address}/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


def _api_key(settings: Settings) -> str:
    """Return the key that clients have to send; "" for none."""
    from ragtuned_pipeline.serving.running import is_loopback

    serving = settings.serving
    key = os.environ.get(serving.api_key_variable, "")
    if not key and not is_loopback(serving.host):
        raise SettingsError(
            f"setting serving.host: {serving.host} can be reached from other machines; set the "
            f"environment variable {serving.api_key_variable} to the key that clients must send"
        )
    return key


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    home.folder.mkdir(parents=True, exist_ok=True)
    with _lock_file(home).open("w") as handle:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not taken(handle):
            if time.monotonic() > deadline:
                other = _read_note(home)
                where = f"at {other['address']}, process {other['pid']}" if other else "starting"
                raise AlreadyServed(f"{home.folder} is served already ({where})")
            time.sleep(_LOCK_SECONDS / 20)
        _note_file(home).unlink(missing_ok=True)  # of a server that was killed
        yield


@contextmanager
def _noted(home: Home, note: dict[str, Any]) -> Iterator[None]:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_text(_note_file(home), json.dumps({**note, "started": started}))
    try:
        yield
    finally:
        _note_file(home).unlink(missing_ok=True)


def _read_note(home: Home) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads(_note_file(home).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return note


def _lock_file(home: Home) -> Path:
    return home.folder / "serving.lock"


def _note_file(home: Home) -> Path:
    return home.folder / "serving.json"
