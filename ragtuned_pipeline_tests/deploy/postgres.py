"""A Postgres server of this machine's own packages, on loopback, for the tests that need one."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 30.0
# No socket in a shared folder, no waiting for the disk, nothing that tidies up beside a test.
_QUICK = ("-cunix_socket_directories=", "-cfsync=off", "-cautovacuum=off")


def programs() -> Path | None:
    """Return the folder of Postgres' programs: of the newest release that Debian's packages have
    put here, or where PATH finds them; None where there are none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_release)
    found = shutil.which("initdb")
    return debian[-1].parent if debian else Path(found).parent if found else None


def _release(program: Path) -> float:
    return float(program.parents[1].name)


@dataclass(frozen=True)
class Server:
    """A running server; `data` is the folder of its files."""

    port: int
    password: str
    data: Path

    def url(self, database: str) -> str:
        return f"postgresql://ragtuned:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser; return its rows."""
        import psycopg2

        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@contextmanager
def serving(binaries: Path) -> Iterator[Server]:
    """Yield a new server with the superuser `ragtuned`, which ends with the block.

    Postgres refuses to be root's: then it is nobody's, in a folder that is.
    """
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="ragtuned-postgres-"))
    if user:
        shutil.chown(folder, user)
    password = secrets.token_hex(8)
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    data, port = folder / "data", free_port()
    try:
        options = ["--no-sync", "--no-instructions", "--auth", "scram-sha-256"]
        names = ["--username", "ragtuned", "--pwfile", folder / "password", "--pgdata", data]
        _run(user, [binaries / "initdb", *options, *names])
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", *_QUICK],
            user=user,
            extra_groups=[] if user else None,
            stderr=(folder / "log").open("w"),
        )
        try:
            _wait(server, binaries, port, folder / "log")
            yield Server(port, password, data)
        finally:
            server.terminate()
            server.wait(_START_SECONDS)
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _run(user: str | None, command: list[object]) -> None:
    made = subprocess.run(
        [str(part) for part in command],
        user=user,
        extra_groups=[] if user else None,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def _wait(server: "subprocess.Popen[bytes]", binaries: Path, port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready).returncode:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
