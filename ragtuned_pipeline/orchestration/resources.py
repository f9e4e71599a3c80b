"""What the assets are given: the home they read and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import ParquetIOManager, TableStore
from ragtuned_pipeline.orchestration.locks import wait_alone
from ragtuned_pipeline.orchestration.partitions import CORPUS_TAG


class HomeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The home folder; empty means $RAGTUNED_HOME, else ~/.ragtuned.

    A run holds its corpus's lock as long as it has this resource: a run of the daemon waits for one
    of the command line, which has taken the lock before it began.
    """

    folder: str = ""

    @property
    def home(self) -> Home:
        return Home.find(self.folder or None)

    @property
    def store(self) -> TableStore:
        return TableStore(self.home.tables)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[HomeResource]:
        run = context.run
        corpus = run.tags.get(CORPUS_TAG) if run else None
        if corpus is None:
            yield self
            return

        def say_so() -> None:
            if context.log:
                context.log.info(f"waiting for another run of corpus {corpus!r} to end")

        with wait_alone(self.home, corpus, say_so):
            yield self


@dg.io_manager(config_schema={"home": dg.Field(str, default_value="")})
def parquet_io_manager(context: dg.InitResourceContext) -> ParquetIOManager:
    """Tables below <home>/tables, or at the fsspec address $RAGTUNED_TABLES."""
    return ParquetIOManager(TableStore(Home.find(context.resource_config["home"]).tables).base)
