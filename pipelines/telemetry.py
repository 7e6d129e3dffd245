"""Switch off, before anything else is imported, what dependencies send home or print uninvited.

Import this module first (the command line and every flow module do): the libraries read these variables once,
at their own import. Values a user has set are kept, so that somebody may switch a thing on for himself.
"""

import os

QUIET = {
    "DO_NOT_TRACK": "true",  # MLflow accepts only the literal "true"; Prefect takes 1, true and yes
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # timm and accelerate bring the hub client along
    "NO_ALBUMENTATIONS_UPDATE": "1",  # asks the index for its newest version at import
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # rich draws ours; two bars tear each other
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a run, on a stdout that others read
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # every table it makes and every monitor it starts is a line
    "GIT_PYTHON_REFRESH": "quiet",  # MLflow's git helper prints a page where git is missing
}

# Not a default but a rule: no model file may run code while it is read, whatever the shell says.
ENFORCED = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def opt_out(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Fill in `environment` (default: this process') in place and return the variables it now has."""
    target = os.environ if environment is None else environment
    for name, value in QUIET.items():
        target.setdefault(name, value)
    target.update(ENFORCED)
    return {name: target[name] for name in (*QUIET, *ENFORCED)}


opt_out()
