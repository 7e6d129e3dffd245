"""Prefect flows over the steps of `pipelines`, and nothing else."""

from pipelines import telemetry  # noqa: F401  (opts out before any flow imports prefect)
