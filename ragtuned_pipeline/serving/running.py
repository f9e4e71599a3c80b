"""The gateway's process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from ragtuned_pipeline.serving.service import Service
from ragtuned_pipeline.settings import SettingsError

_BACKLOG = 2048  # uvicorn's
# OpenAI's clients close idle connections after 5 s: they should, not the server, which could do so
# just when a request is sent.
_KEEP_ALIVE_SECONDS = 75


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        SettingsError: host and port cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(_BACKLOG)  # who comes before the application is up waits for it
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"settings serving.host and serving.port: {host}:{port} cannot be had "
            f"({error.strerror}); choose another (--host, --port)"
        ) from None
    return found


def address_of(listener: socket.socket) -> str:
    """Return http://host:port/v1 of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def run(app: ASGIApp, service: Service, listener: socket.socket, drain_seconds: float) -> None:
    """Answer until SIGTERM or SIGINT: then no new request, the running ones for `drain_seconds`,
    and the engine's end. A second SIGINT waits for nothing.

    Raises:
        SettingsError, TeacherStopped: as of Service.run.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_until_told(Server(config), service, listener))


async def _until_told(server: Server, service: Service, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await answer(server, service, listener)


async def answer(server: Server, service: Service, listener: socket.socket) -> None:
    """Answer until the server ends, or the service by itself: raises why, as Service.run."""
    work = asyncio.create_task(service.run())
    work.add_done_callback(lambda _: server.end())
    try:
        await server.serve([listener])
    finally:
        work.cancel()
        await asyncio.wait([work])
    if not work.cancelled():
        work.result()  # why it ended by itself


class Server(uvicorn.Server):
    """A server that leaves the process's signals alone."""

    def end(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `run`: uvicorn would raise them again before the engine is closed.

        Its own handler, called by `_until_told`, does the same with them otherwise.
        """
        yield
