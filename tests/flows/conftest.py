"""Flows are tested against one throw-away Prefect server a session (7 s to start), never the user's."""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.update(PREFECT_LOGGING_LEVEL="ERROR", PREFECT_LOGGING_TO_API_ENABLED="false")


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    logging.getLogger("prefect").setLevel(logging.ERROR)
    with (
        # 30 s, the default, is too little where two cores also train: 136 s seen.
        prefect_test_harness(server_startup_timeout=300),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),  # 1 s less at the end of every run
    ):
        yield
