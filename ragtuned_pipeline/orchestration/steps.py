"""What every table asset does: look whether its result is already there, else compute it, then
return it with its data version, its metadata and the results of its checks."""

from __future__ import annotations

import ast
import functools
import json
import warnings
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

import ragtuned_pipeline
from ragtuned_pipeline.orchestration.io import (
    TableStore,
    fingerprint,
    table_metadata,
    with_fingerprint,
)
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import SCHEMAS, check_schema, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import BaseModel

    from ragtuned_pipeline.settings import TuningSettings

OWNER = "team:memory"
ROOT = ragtuned_pipeline.__path__[0]


class UserError(dg.Failure):
    """A step stopped for a reason the user can act on; the description is the whole message."""

    def __init__(self, message: str) -> None:
        super().__init__(description=message, allow_retries=False)


@functools.cache
def code_version(*rooms: str) -> str:
    """Return a hash of the source and data files of `rooms` (folders or modules of the package).

    A step runs again when the code it is made of has changed, without anyone having to remember
    to raise a number; equal results then stop the wave, because data versions are content hashes.
    """
    from hashlib import blake2b
    from pathlib import Path

    digest = blake2b(digest_size=8)
    for room in ("tables.py", "ids.py", *rooms):
        place = Path(ROOT) / room
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.suffix in {".py", ".j2", ".json", ".toml", ".txt", ".safetensors"}:
                digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def code_behind(module: str) -> tuple[str, ...]:
    """Return the rooms of one module for `code_version`: itself, the modules of the package that it
    imports, directly or not, and the prompt files that they name.

    So a new system beside it, or a prompt of another one, leaves its results as they are. Settings
    are left out: what a step reads of them is in its fingerprint.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting += _named_in(room)
    return tuple(sorted(found))


@functools.cache
def _named_in(room: str) -> tuple[str, ...]:
    """Return the modules that a module imports and the prompt files that it names."""
    from pathlib import Path

    file = Path(ROOT) / room
    if file.suffix != ".py":
        return ()
    named: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            named += [
                f"{name.removeprefix('ragtuned_pipeline.').replace('.', '/')}.py"
                for name in imported
                if name.startswith("ragtuned_pipeline.")
            ]
        elif isinstance(node, ast.Constant) and str(node.value).endswith(".md.j2"):
            named.append((file.parent / "prompts" / str(node.value)).relative_to(ROOT).as_posix())
    apart = {"settings.py", "tables.py"}
    return tuple(each for each in named if each not in apart and (Path(ROOT) / each).is_file())


def settings_key(*sections: BaseModel | Mapping[str, Any]) -> str:
    """Return the settings a step reads as canonical JSON, for its fingerprint."""
    plain = [s if isinstance(s, dict) else s.model_dump(mode="json") for s in sections]  # type: ignore[union-attr]
    return json.dumps(plain, sort_keys=True)


def base_model_key(tuning: TuningSettings) -> dict[str, str]:
    """Return the base model's identity for `settings_key`: other weights under the same name are
    another model.

    Raises:
        UserError: there is no such model.
    """
    from ragtuned_pipeline.inference.base_models import identity

    try:
        return {"base_model": identity(tuning.base_model)}
    except SettingsError as error:
        raise UserError(str(error)) from error


def table_assets(
    *,
    outputs: Mapping[str, str],
    group: str,
    rooms: Sequence[str],
    inputs: Sequence[str] = (),
    deps: Sequence[str] = (),
    checks: Mapping[str, Sequence[str]] | None = None,
    kinds: set[str] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return the decorator that makes one step's tables assets, one partition a corpus.

    Args:
        outputs: description by asset name.
        rooms: the parts of the package whose code the step is made of.
        inputs: assets that the function gets as tables, under their own names.
        deps: assets that must come first but are read otherwise.
        checks: names of further checks by output; every output has the check "schema".
    """
    return dg.multi_asset(
        name=next(iter(outputs)),
        outs={
            name: dg.AssetOut(
                description=description,
                group_name=group,
                code_version=code_version(*rooms),
                owners=[OWNER],
                kinds={"parquet", *(kinds or set())},
                dagster_type=dg.Any,
            )
            for name, description in outputs.items()
        },
        ins={name: dg.AssetIn(name) for name in inputs},
        deps=list(deps),
        check_specs=[
            partitioned_check(check, name)
            for name in outputs
            for check in ("schema", *(checks or {}).get(name, ()))
        ],
        partitions_def=corpora,
    )


def partitioned_check(name: str, asset: str) -> dg.AssetCheckSpec:
    """A check with one result a corpus; without partitions it would hold the last run of any."""
    with warnings.catch_warnings():
        # In preview in this pinned release; a test runs it for two corpora.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(name, asset=asset, partitions_def=corpora)


def run_step(
    context: dg.AssetExecutionContext,
    store: TableStore,
    outputs: Sequence[str],
    settings: str,
    inputs: Mapping[str, pa.Table | str],
    compute: Callable[[], tuple[Mapping[str, pa.Table], Mapping[str, Any]]],
    checks: Callable[[Mapping[str, pa.Table]], Sequence[dg.AssetCheckResult]] | None = None,
) -> Iterator[dg.MaterializeResult[pa.Table]]:
    """Yield one result for each output table, computed only where something it depends on changed,
    or calls of the teacher's failed the last time.

    Args:
        outputs: asset names; each is the name of a table schema or ends in "_failures".
        settings: see `settings_key`.
        inputs: tables, or content hashes of other things.
        compute: returns the outputs by name, and metadata for the first of them.
        checks: further check results, from the numbers at hand.
    """
    corpus = context.partition_key
    version = context.assets_def.code_versions_by_key[dg.AssetKey(outputs[0])] or ""
    hashes = {k: v if isinstance(v, str) else content_hash(v) for k, v in inputs.items()}
    key = fingerprint(version, settings, hashes)
    kept = store.cached(outputs, corpus, key)
    if kept and _has_failed_calls(kept):
        context.log.info("calls of the teacher's had failed: they are asked again")
        kept = None
    tables, extra = (kept, {"unchanged": True}) if kept else compute()
    if kept:
        context.log.info("nothing that this step depends on has changed: its result is kept")
    results = [schema_check(name, tables[name]) for name in outputs]
    results += checks(tables) if checks else []
    for name in outputs:
        data = tables[name]
        yield dg.MaterializeResult(
            asset_key=name,
            value=with_fingerprint(data, key),
            data_version=dg.DataVersion(content_hash(data)),
            metadata={
                **table_metadata(data),
                "fingerprint": key,
                **(extra if name == outputs[0] else {}),
            },
            check_results=[r for r in results if r.asset_key == dg.AssetKey(name)],
        )


def _has_failed_calls(tables: Mapping[str, pa.Table]) -> bool:
    """Tell whether a step lacks replies; those that it has are in the store and cost nothing."""
    return any(
        name.endswith("_usage") and (pc.sum(data["failed"]).as_py() or 0) > 0
        for name, data in tables.items()
    )


_SAME_SCHEMA = {
    "new_wording_queries": "queries",
    "control_queries": "queries",
    "control_rows": "training_rows",
    "generated_queries": "queries",
    "ablation_queries": "queries",
    "ablation_judgements": "judgements",
    "ablation_win_rates": "win_rates",
}


def schema_name(asset: str) -> str:
    """The table schema of an asset: `documents_failures` is a failures table, and so on."""
    if asset.endswith("_failures"):
        return "failures"
    if asset.endswith("_usage") or asset == "teacher_plan":
        return "teacher_usage"
    for start, name in (("answers_", "answers"), ("ablation_rows_", "training_rows")):
        if asset.startswith(start):
            return name
    return _SAME_SCHEMA.get(asset, asset)


def schema_check(asset: str, data: pa.Table) -> dg.AssetCheckResult:
    """Every column is there with its type, and the ids are unique and not null."""
    name = schema_name(asset)
    problem = ""
    try:
        check_schema(name, data)
    except ValueError as error:
        problem = str(error)
    if not problem and "id" in SCHEMAS[name].names and data.num_rows:
        ids = data.column("id")
        if ids.null_count:
            problem = f"{ids.null_count} rows without an id"
        elif pc.count_distinct(ids).as_py() != data.num_rows:
            problem = "two rows with one id"
    return dg.AssetCheckResult(
        passed=not problem,
        asset_key=asset,
        check_name="schema",
        metadata={"problem": problem or "none", "rows": data.num_rows},
    )


def reference_check(
    asset: str, references: Sequence[tuple[str, pa.ChunkedArray, pa.ChunkedArray]]
) -> dg.AssetCheckResult:
    """No id in a list column leads nowhere.

    Args:
        references: (column name, its lists or values, the ids that exist).
    """
    dangling = {}
    for column, values, existing in references:
        if pa.types.is_list(values.type):
            values = pc.list_flatten(values)
        values = values.combine_chunks().drop_null()
        found = pc.is_in(values, value_set=existing.combine_chunks())
        missing = pc.filter(values, pc.invert(found))
        if len(missing):
            dangling[column] = f"{len(missing)}, the first {missing[0].as_py()}"
    return dg.AssetCheckResult(
        passed=not dangling,
        asset_key=asset,
        check_name="no_dangling_ids",
        metadata={"dangling": dangling or "none"},
    )


def failures_check(
    asset: str, failed: int, items: int, limit: float, usage: pa.Table | None = None
) -> dg.AssetCheckResult:
    """The share of a stage's items that failed is within the setting checks.max_failed_share.

    Args:
        usage: table teacher_usage; where the teacher was asked, its calls are the items.
    """
    if usage is not None and usage.num_rows:
        failed, items = pc.sum(usage["failed"]).as_py(), pc.sum(usage["calls"]).as_py()
    share = failed / items if items else 0.0
    return dg.AssetCheckResult(
        passed=share <= limit,
        asset_key=asset,
        check_name="failures_share",
        metadata={"failed": failed, "items": items, "share": share, "limit": limit},
    )
