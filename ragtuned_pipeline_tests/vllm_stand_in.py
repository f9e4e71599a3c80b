"""A stand-in for vLLM's own program, as a package `vllm` of the tests' own."""

import contextlib
from pathlib import Path

import pytest

from ragtuned_pipeline.inference import vllm_server

# Answers as vLLM's server does, and has a child, as an engine is one; it writes down the ids of
# both. A stubborn one ends only when it is killed. As an adapter it says its name and the question.
STAND_IN = """
import json, os, signal, socket, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

given = {}
for word in sys.argv[1:]:
    if word.startswith("--"):
        name, given[word] = word, ""
    else:
        given[name] = word
mode = given.get("--mode", "")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a child inherits it
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
with open(os.path.join(os.path.dirname(__file__), "started"), "a") as started:
    started.write(f"{os.getpid()} {child.pid}\\n")
print("(APIServer pid=1) INFO 11-25 13:00:00 [api_server.py:1] starting", flush=True)
if mode == "die":
    print("(EngineCore pid=2) ERROR 11-25 13:00:01 [core.py:9] ValueError: no room for a cache")
    print("(APIServer pid=1) RuntimeError: Engine core failed. See root cause above. {}")
    print("(APIServer pid=1) INFO 11-25 13:00:02 [api_server.py:2] bye")
    sys.exit(3)
if mode == "exit 255":
    os._exit(255)
if mode == "hang":
    time.sleep(600)
asked = 0
met = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global asked
        asked += 1
        # Not up at once: loading takes a while.
        status = 200 if self.path == "/v1/models" or asked > 2 else 503
        self.send({"data": [{"id": given["--served-model-name"]}]}, status)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            return self.send({})
        words = body["messages"][-1]["content"]
        if words == "always busy" or (words == "busy" and words not in met):
            met.add(words)
            return self.send({"error": {"message": "busy"}}, 503)
        if words == "die":
            line = "(EngineCore pid=2) ERROR 11-25 13:00:09 [core.py:9] KeyError: 'a bug'"
            print(line, flush=True)
            os._exit(5)
        own = body["model"] == given["--served-model-name"]
        content = json.dumps(given) if own else f"{body['model']}: {words}"
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        self.send({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    def send(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class OnSocket(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)


if "--uds" in given:
    OnSocket(given["--uds"], Handler).serve_forever()
ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `vllm` for this process and its children; returns where it notes process ids."""
    folder = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(STAND_IN, encoding="utf-8")
    (folder.parents[1] / "__init__.py").touch()
    about = tmp_path / "site" / "vllm_stand_in-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: vllm-stand-in\nVersion: 1.0\n", encoding="utf-8")
    (about / "top_level.txt").write_text("vllm\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(vllm_server, "_LOOK_EVERY", 0.05)
    return folder / "started"


def started(stand_in: Path) -> list[int]:
    """The ids of the servers that were started, each followed by its child's."""
    return [int(pid) for pid in stand_in.read_text(encoding="utf-8").split()]


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that still run."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            if state[0] != "Z":
                found.append(pid)
    return found
