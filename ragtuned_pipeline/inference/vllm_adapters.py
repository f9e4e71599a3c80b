"""Adapters that come and go while a vLLM server is up: its run-time API, two calls.

A name must never be used again for another adapter. vLLM 0.32 finds blocks of its prefix cache by
the adapter's name and folder: changed weights under an old name in an old folder would be answered
for with what the old ones had computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ragtuned_pipeline.inference.openai_backend import read_error

if TYPE_CHECKING:
    import httpx2

_ALREADY = "has already been loaded"


class AdapterNotTaken(RuntimeError):
    """The server does not take an adapter; the message holds its own words."""


async def load_adapter(client: httpx2.AsyncClient, address: str, name: str, folder: Path) -> None:
    """Let requests name the adapter in `folder` as their model; nothing where they can already.

    Args:
        client: whose timeout bounds the call; reading an adapter takes a moment.
        address: of the server, as VllmServer.up gives it (http://.../v1).
        name: never used for another adapter.
        folder: a PEFT adapter; it has to stay for as long as the name is loaded, since vLLM may
            read it again.

    Raises:
        AdapterNotTaken: the rank is higher than the server's max_rank, a file is missing, ...
        httpx2.HTTPError: the server cannot be reached.
    """
    body = {"lora_name": name, "lora_path": str(folder.absolute())}
    reply = await client.post(f"{address}/load_lora_adapter", json=body)
    if reply.status_code == 200 or (reply.status_code == 400 and _ALREADY in reply.text):
        return
    raise AdapterNotTaken(f"vLLM does not take the adapter in {folder}: {server_words(reply)}")


async def unload_adapter(client: httpx2.AsyncClient, address: str, name: str) -> None:
    """Take a name away, once no request with it is left; nothing where there is none.

    The weights leave vLLM's memory when others need the room.

    Raises:
        AdapterNotTaken: the server says no.
        httpx2.HTTPError: the server cannot be reached.
    """
    reply = await client.post(f"{address}/unload_lora_adapter", json={"lora_name": name})
    if reply.status_code not in {200, 404}:
        raise AdapterNotTaken(f"vLLM does not unload the adapter {name}: {server_words(reply)}")


def server_words(reply: httpx2.Response) -> str:
    """Return why the server says no."""
    _, _, words = read_error(reply.content)
    return words or f"status {reply.status_code}"
