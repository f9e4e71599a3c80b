"""The only room that imports dagster: assets, checks, automation, storage of tables."""
