"""Prefect flows over the steps of `pipelines`, and nothing else."""
