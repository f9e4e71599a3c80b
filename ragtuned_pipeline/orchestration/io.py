"""Tables as Parquet files, <base>/<table>/<corpus>.parquet, on any fsspec file system."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from ragtuned_pipeline.files import temporary_name
from ragtuned_pipeline.settings import check_corpus_name
from ragtuned_pipeline.tables import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FINGERPRINT = b"ragtuned.fingerprint"
_PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 120


class TableStore:
    """Reads and writes whole tables; a reader sees the old file or the whole new one."""

    def __init__(self, base: str) -> None:
        self.base = UPath(base)

    def path(self, name: str, corpus: str) -> UPath:
        return self.base / name / f"{check_corpus_name(corpus)}.parquet"

    def exists(self, name: str, corpus: str) -> bool:
        return bool(self.path(name, corpus).exists())

    def read(self, name: str, corpus: str) -> pa.Table:
        """Return the stored table without its fingerprint.

        Raises:
            FileNotFoundError: it was never written.
        """
        with self.path(name, corpus).open("rb") as handle:
            return pq.read_table(pa.BufferReader(handle.read())).replace_schema_metadata()

    def write(self, name: str, corpus: str, data: pa.Table) -> None:
        write_parquet(data, self.path(name, corpus))

    def row_count(self, name: str, corpus: str) -> int | None:
        """Return how many rows a table has, from its footer; None where it was never written."""
        if not self.exists(name, corpus):
            return None
        with self.path(name, corpus).open("rb") as handle:
            return int(pq.read_metadata(handle).num_rows)

    def files(self) -> list[UPath]:
        """Return the files of all tables and corpora, half-written ones too, by name."""
        folders = sorted(self.base.iterdir(), key=str) if self.base.exists() else []
        return [path for folder in folders for path in sorted(folder.iterdir(), key=str)]

    def cached(
        self, names: Sequence[str], corpus: str, fingerprint: str
    ) -> dict[str, pa.Table] | None:
        """Return the tables if all of them were made with this very fingerprint."""
        for name in names:
            path = self.path(name, corpus)
            if not path.exists():
                return None
            with path.open("rb") as handle:
                metadata = pq.read_metadata(handle).metadata or {}
            if metadata.get(_FINGERPRINT) != fingerprint.encode():
                return None
        return {name: self.read(name, corpus) for name in names}


def write_parquet(data: pa.Table, path: UPath) -> None:
    """Write to a temporary name beside `path`, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as handle:
            # Without Arrow's own schema: it records the names of list children, which differ
            # between a table that was made and the same table that was read.
            plain = data.replace_schema_metadata()
            with pq.ParquetWriter(
                handle, plain.schema, compression="zstd", store_schema=False
            ) as writer:
                writer.write_table(plain)
                writer.add_key_value_metadata(data.schema.metadata or {})
        temporary.rename(path)
    except BaseException:
        if temporary.exists():
            temporary.unlink()
        raise


def with_fingerprint(data: pa.Table, fingerprint: str) -> pa.Table:
    return data.replace_schema_metadata({_FINGERPRINT: fingerprint.encode()})


def fingerprint(code_version: str, settings: str, inputs: Mapping[str, str]) -> str:
    """Return a hash of everything that a step's result depends on.

    Args:
        code_version: of the step's code.
        settings: the settings the step reads, as canonical JSON.
        inputs: content hash by input name.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (code_version, settings, *(f"{k}={v}" for k, v in sorted(inputs.items()))):
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


class ParquetIOManager(dg.UPathIOManager):
    """Dagster's view of the table store: a corpus's partition is one file a table."""

    extension = ".parquet"

    def make_safe_partition_path(self, base_path: UPath, partition: str) -> UPath:
        return base_path / check_corpus_name(partition)

    def dump_to_path(self, context: dg.OutputContext, obj: pa.Table, path: UPath) -> None:
        write_parquet(obj, path)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pa.Table:
        with path.open("rb") as handle:
            return pq.read_table(pa.BufferReader(handle.read())).replace_schema_metadata()


def table_metadata(data: pa.Table) -> dict[str, Any]:
    """Row count, column schema and a preview, as Dagster's UI shows them."""
    return {
        "dagster/row_count": data.num_rows,
        "dagster/column_schema": dg.TableSchema(
            columns=[dg.TableColumn(field.name, type=str(field.type)) for field in data.schema]
        ),
        "preview": dg.MetadataValue.md(markdown_table(data, _PREVIEW_ROWS, _PREVIEW_CHARACTERS)),
        "content_hash": content_hash(data),
    }


def markdown_table(data: pa.Table, rows: int, characters: int) -> str:
    """The first `rows` as a Markdown table, cells longer than `characters` cut."""
    names = data.column_names
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in data.slice(0, rows).to_pylist():
        cells = (_cell(row[name], characters) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any, characters: int) -> str:
    if isinstance(value, list):
        value = f"{len(value)} items"
    text = "" if value is None else str(value)
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= characters else text[:characters] + "…"
