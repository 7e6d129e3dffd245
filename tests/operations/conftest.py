"""One start of the whole service for the tests that need it: a minute."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import postgres
from tests.operations.service import Native


@pytest.fixture(scope="session")
def native() -> Iterator[Native]:
    if not postgres.is_installed():
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed, and in CI that is a failure (see .ci/run)")
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="maskbridge-native-"))  # not pytest's: PostgreSQL's user must get there
    folder.chmod(0o755)
    made = Native(folder)
    try:
        made("up")
        yield made
    finally:
        made("down")
        shutil.rmtree(folder, ignore_errors=True)
