"""The assets, one module a room of the pipeline. Each asset reads, calls a pure step, returns."""
