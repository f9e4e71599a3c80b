"""What the assets are given: the home they read and write."""

from __future__ import annotations

import dagster as dg

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import ParquetIOManager, TableStore


class HomeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The home folder; empty means $RAGTUNED_HOME, else ~/.ragtuned."""

    folder: str = ""

    @property
    def home(self) -> Home:
        return Home.find(self.folder or None)

    @property
    def store(self) -> TableStore:
        return TableStore(self.home.tables)


@dg.io_manager(config_schema={"home": dg.Field(str, default_value="")})
def parquet_io_manager(context: dg.InitResourceContext) -> ParquetIOManager:
    """Tables below <home>/tables, or at the fsspec address $RAGTUNED_TABLES."""
    return ParquetIOManager(TableStore(Home.find(context.resource_config["home"]).tables).base)
