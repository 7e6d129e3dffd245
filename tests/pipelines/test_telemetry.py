"""What leaves the machine or runs code while a model is read is off, whatever came before."""

import os
import subprocess
import sys

from pipelines import telemetry


def test_opt_out_fills_in_keeps_choices_and_enforces_safety() -> None:
    environment = {"DO_NOT_TRACK": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}
    switched = telemetry.opt_out(environment)
    assert environment["DO_NOT_TRACK"] == "1", "a user's own setting stays"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert switched == {name: environment[name] for name in (*telemetry.QUIET, *telemetry.ENFORCED)}


def test_import_alone_sets_this_process_and_needs_no_package() -> None:
    code = (
        "import sys; before = set(sys.modules); import pipelines.telemetry, os; "
        "print(os.environ['MLFLOW_ALLOW_PICKLE_DESERIALIZATION'], "
        "sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names))"
    )
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "false ['pipelines', 'pipelines.telemetry']", done.stderr
