"""One partition per memory corpus."""

import dagster as dg

corpora = dg.DynamicPartitionsDefinition(name="corpora")
