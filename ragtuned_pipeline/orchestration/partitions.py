"""One partition per memory corpus, and how Dagster tags what belongs to one."""

import dagster as dg

corpora = dg.DynamicPartitionsDefinition(name="corpora")

CORPUS_TAG = "dagster/partition"  # of a run: its corpus
VERSION_TAG = "dagster/data_version"  # of a materialisation
