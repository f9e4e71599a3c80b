"""A Kubernetes API of just what a pod's life takes; a pod is a process of this machine."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class Cluster:
    """Pods that were asked for, by name, as the API was told; deleted ones stay in `asked`."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.deleted: list[str] = []
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._lines: dict[str, list[str]] = {}

    def start(self, pod: Any) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        told = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        self.asked[name] = pod
        self._processes[name] = subprocess.Popen(
            container["command"],
            env=os.environ | told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self, name: str) -> str:
        """All that the pod prints, once it has ended, each line after its time."""
        if name not in self._lines:
            printed, _ = self._processes[name].communicate()
            self._lines[name] = printed.splitlines()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        lines = enumerate(self._lines[name])
        return "".join(f"{now}.{number:09}Z {line}\n" for number, line in lines)

    def pod(self, name: str) -> Any:
        exit_code = self._processes[name].poll()
        running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        ended = {"terminated": {"exitCode": exit_code, "reason": "Completed"}}
        container = {
            "name": self.asked[name]["spec"]["containers"][0]["name"],
            "image": "",
            "imageID": "",
            "ready": exit_code is None,
            "restartCount": 0,
            "state": running if exit_code is None else ended,
        }
        phase = "Running" if exit_code is None else "Succeeded" if exit_code == 0 else "Failed"
        status = {"phase": phase, "containerStatuses": [container]}
        return {"apiVersion": "v1", "kind": "Pod", **self.asked[name], "status": status}


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """Yield a cluster and the kubeconfig that leads to it."""
    made = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = path.split("/")[6] if len(path.split("/")) > 6 else ""
            if path.endswith("/log"):
                self.answer(made.log(name).encode(), "text/plain")
            elif name:
                self.answer(made.pod(name))
            else:
                name = query.partition("metadata.name%3D")[2].partition("&")[0]
                pods = [made.pod(name)] if name in made.asked else []
                self.answer({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods})

        def do_POST(self) -> None:
            pod = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.start(pod)
            self.answer(pod)

        def do_DELETE(self) -> None:
            made.deleted.append(self.path.partition("?")[0].split("/")[6])
            self.answer({"apiVersion": "v1", "kind": "Status", "status": "Success"})

        def answer(self, body: Any, kind: str = "application/json") -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": address}}],
                "users": [{"name": "nobody", "user": {}}],
                "contexts": [
                    {"name": "here", "context": {"cluster": "here", "user": "nobody"}},
                ],
            }
        )
    )
    try:
        yield made, kubeconfig
    finally:
        server.shutdown()
        server.server_close()
