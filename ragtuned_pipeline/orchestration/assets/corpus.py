"""corpus: documents and their text units, from a folder of files."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.orchestration.folder_versions import note_read, report_folder
from ragtuned_pipeline.orchestration.home import CorpusMissing
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    base_model_key,
    failures_check,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import content_hash, failures_table

corpus_folder = dg.AssetSpec(
    "corpus_folder",
    description="The folder of documents that the corpus is read from.",
    group_name="corpus",
    owners=[OWNER],
    kinds={"file"},
    partitions_def=corpora,
)


@table_assets(
    outputs={
        "documents": "The files that could be read: text, title, date, and their text units.",
        "base_text_units": "Documents cut into overlapping units, before the graph exists.",
        "documents_failures": "Files and records that could not be read, each with its reason.",
    },
    group="corpus",
    rooms=["corpus"],
    deps=["corpus_folder"],
    checks={"documents": ["failures_share"], "base_text_units": ["no_dangling_ids"]},
)
def read_corpus(context: dg.AssetExecutionContext, home: HomeResource) -> Iterator[Any]:
    from ragtuned_pipeline.corpus.chunking import chunk_documents
    from ragtuned_pipeline.corpus.readers import CorpusError, read_folder
    from ragtuned_pipeline.inference.base_models import load_fast_tokenizer

    corpus = context.partition_key
    settings = home.home.settings(corpus)
    try:
        version = report_folder(context.instance, home.home, corpus)
        folder = home.home.documents(corpus)
        with open_items(home.home.items(corpus), "documents") as converted:
            read, failures = read_folder(folder, settings.corpus.max_file_megabytes, converted)
        tokenizer = load_fast_tokenizer(settings.tuning.base_model)
    except (CorpusError, CorpusMissing, SettingsError) as error:
        raise UserError(str(error)) from error
    failed = failures_table(failures)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        documents, units = chunk_documents(
            read, tokenizer, settings.corpus.chunk_tokens, settings.corpus.overlap_tokens
        )
        tables = {
            "documents": documents,
            "base_text_units": units,
            "documents_failures": failed,
        }
        return tables, {"folder": dg.MetadataValue.path(str(folder)), "failures": len(failures)}

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        documents, units = tables["documents"], tables["base_text_units"]
        items = documents.num_rows + failed.num_rows
        return [
            failures_check("documents", failed.num_rows, items, settings.checks.max_failed_share),
            reference_check(
                "base_text_units", [("document_id", units["document_id"], documents["id"])]
            ),
        ]

    yield from run_step(
        context,
        home.store,
        ["documents", "base_text_units", "documents_failures"],
        settings_key(settings.corpus, base_model_key(settings.tuning)),
        {"read": content_hash(read), "failed": content_hash(failed)},
        compute,
        checks,
    )
    note_read(home.home, corpus, version)
