"""Adapters by content: <home>/adapters/<corpus>/<content hash>/, and a `current` link beside them.

Each folder is a standard PEFT adapter (adapter_config.json, adapter_model.safetensors) and
base_model.json, which names the base model's weights by `identity`. Nothing in it tells where it
was made, so equal weights have equal names on every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from ragtuned_pipeline.files import temporary_name
from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.settings import EMBEDDED_MODEL

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_BASE = "base_model.json"
_CURRENT = "current"


class AdapterError(RuntimeError):
    """An adapter is missing or does not fit; the message says what to do."""


def store(adapter: Path, adapters: Path, corpus: str, base_model: str) -> str:
    """Copy a trained adapter into the store; return its content hash (20 hex digits).

    Args:
        adapter: the folder that save_pretrained wrote.
        adapters: <home>/adapters.
        corpus: the corpus it learned.
        base_model: the setting it was trained with.

    Raises:
        AdapterError: `adapter` holds no PEFT adapter.
    """
    for name in (_WEIGHTS, _CONFIG):
        if not (adapter / name).is_file():
            raise AdapterError(f"{adapter} holds no adapter: {name} is missing; train it again")
    config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    # A local path would tie the adapter to this machine.
    config["base_model_name_or_path"] = _public_name(base_model)
    if isinstance(config.get("target_modules"), list):  # PEFT writes a set, in any order
        config["target_modules"].sort()
    config_text = json.dumps(config, indent=2, sort_keys=True)
    base_text = json.dumps(
        {"base_model": _public_name(base_model), "identity": identity(base_model)}
    )
    content = _content_hash(adapter / _WEIGHTS, config_text, base_text)
    target = adapters / corpus / content
    if target.is_dir():
        return content
    building = target.with_name(temporary_name(content))
    building.mkdir(parents=True)
    try:
        shutil.copyfile(adapter / _WEIGHTS, building / _WEIGHTS)
        (building / _CONFIG).write_text(config_text, encoding="utf-8")
        (building / _BASE).write_text(base_text, encoding="utf-8")
        building.rename(target)
    except OSError:
        if not target.is_dir():  # else another process stored the same content first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return content


def find(adapters: Path, corpus: str, content: str, base_model: str) -> Path:
    """Return the folder of a stored adapter.

    Raises:
        AdapterError: it is not there, or it belongs to another base model.
    """
    folder = adapters / corpus / content
    if not (folder / _BASE).is_file():
        raise AdapterError(f"corpus {corpus} has no adapter {content} in {adapters}")
    check_base(folder, base_model)
    return folder


def current(adapters: Path, corpus: str, base_model: str) -> Path:
    """Return the folder of the promoted adapter, its link resolved.

    Raises:
        AdapterError: none is promoted, or it belongs to another base model.
    """
    link = current_link(adapters, corpus)
    if not link.is_dir():
        raise AdapterError(f"corpus {corpus} has no promoted adapter; run `ragtuned run` first")
    folder = link.resolve()
    check_base(folder, base_model)
    return folder


def current_link(adapters: Path, corpus: str) -> Path:
    """Return where the link to the promoted adapter is, or would be."""
    return adapters / corpus / _CURRENT


def promoted(adapters: Path, corpus: str) -> str | None:
    """Return the content hash of the promoted adapter, whatever its base model; None without."""
    link = current_link(adapters, corpus)
    return link.resolve().name if link.is_symlink() and link.is_dir() else None


def stored(adapters: Path, corpus: str) -> list[str]:
    """Return the content hashes of a corpus's stored adapters, sorted."""
    found = (adapters / corpus).glob(f"[!.]*/{_BASE}")
    folders = (file.parent for file in found)
    return sorted(f.name for f in folders if f.name != _CURRENT and not f.is_symlink())


def delete(adapters: Path, corpus: str, content: str) -> None:
    """Delete a stored adapter and the files beside it that bear its name (<content hash>.*).

    Half of one is never seen under its name.

    Raises:
        AdapterError: it is the promoted one.
    """
    if content == promoted(adapters, corpus):
        raise AdapterError(f"adapter {content} of corpus {corpus} answers; it is not deleted")
    folder = adapters / corpus / content
    leaving = folder.with_name(temporary_name(content))
    folder.rename(leaving)
    for file in folder.parent.glob(f"{content}.*"):
        file.unlink()
    shutil.rmtree(leaving)


def promote(adapters: Path, corpus: str, content: str) -> None:
    """Point `current` at a stored adapter, in one step: a reader sees the old one or the new one.

    Raises:
        AdapterError: there is no such adapter.
    """
    folder = adapters / corpus
    if not (folder / content / _BASE).is_file():
        raise AdapterError(f"corpus {corpus} has no adapter {content} in {adapters}")
    link = folder / temporary_name(_CURRENT)
    link.unlink(missing_ok=True)
    link.symlink_to(content)  # relative: the home may move
    link.replace(folder / _CURRENT)


def is_link_lost(adapters: Path, corpus: str) -> bool:
    """Whether a folder has the link's place: a copy of the home that followed links made it."""
    link = current_link(adapters, corpus)
    return link.is_dir() and not link.is_symlink()


def restore_link(adapters: Path, corpus: str) -> None:
    """Make a link of the folder in the link's place, to the adapter that it is a copy of.

    Where that one is not stored, the copy is stored; one that is not whole is deleted.
    """
    folder = adapters / corpus
    copy = folder / temporary_name(f"{_CURRENT}.copy")
    (folder / _CURRENT).rename(copy)
    if all((copy / name).is_file() for name in (_WEIGHTS, _CONFIG, _BASE)):
        content = content_of(copy)
        if not (folder / content).is_dir():
            copy.rename(folder / content)
        promote(adapters, corpus, content)
    shutil.rmtree(copy, ignore_errors=True)


def content_of(folder: Path) -> str:
    """Return the content hash of an adapter's folder: its name, as long as nothing has changed.

    Raises:
        OSError: a file of it cannot be read.
    """
    texts = ((folder / name).read_text(encoding="utf-8") for name in (_CONFIG, _BASE))
    return _content_hash(folder / _WEIGHTS, *texts)


def adapter_shape(folder: Path) -> tuple[int, int]:
    """Return the LoRA rank and alpha of the adapter in a folder.

    Raises:
        OSError, ValueError: its adapter_config.json is missing, or says none.
    """
    match json.loads((folder / _CONFIG).read_text(encoding="utf-8")):
        case {"r": int(rank), "lora_alpha": int(alpha)}:
            return rank, alpha
    raise ValueError(f"{_CONFIG} says no rank and alpha")


def check_base(folder: Path, base_model: str) -> None:
    """Raises AdapterError where the adapter belongs to another base model."""
    made_with = json.loads((folder / _BASE).read_text(encoding="utf-8"))
    if made_with["identity"] != identity(base_model):
        raise AdapterError(
            f"adapter {folder.name} was trained on {made_with['base_model']} "
            f"({made_with['identity']}), and the setting tuning.base_model is {base_model} "
            f"({identity(base_model)}); set it back, or run again to train a new adapter"
        )


def _public_name(base_model: str) -> str:
    """The name without the place: a folder's own name, a hub id, or "embedded"."""
    if base_model == EMBEDDED_MODEL or not Path(base_model).expanduser().is_dir():
        return base_model
    return Path(base_model).expanduser().absolute().name


def _content_hash(weights: Path, *texts: str) -> str:
    digest = hashlib.blake2b(digest_size=10)
    with weights.open("rb") as handle:
        digest.update(hashlib.file_digest(handle, "blake2b").digest())
    for text in texts:
        digest.update(hashlib.blake2b(text.encode()).digest())
    return digest.hexdigest()
