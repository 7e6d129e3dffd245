"""@champion and @previous: read in one request, moved in one each.

@previous is moved first. A process killed in between leaves both on the same version, which serves the same model; the
other order would have lost the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.errors import InputError
from pipelines.tracking_store import readable, shown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"


def aliases(client: MlflowClient, uri: str, name: str) -> dict[str, str]:
    """alias → version of a model. InputError where no model has that name."""
    from mlflow.exceptions import MlflowException

    with readable(uri):
        try:
            found = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise InputError(f"{name}: no model of that name is registered in {shown(uri)}") from None
            raise
    return {alias: str(version) for alias, version in found.items()}


def crown(client: MlflowClient, uri: str, name: str, version: str, previous: str | None) -> None:
    """Make `version` the champion and `previous` what a rollback goes to (None: nothing). It is no challenger now."""
    with readable(uri):
        if previous is not None:
            client.set_registered_model_alias(name, PREVIOUS, previous)
        client.set_registered_model_alias(name, CHAMPION, version)
        known = client.get_registered_model(name).aliases
        if previous is None and PREVIOUS in known:
            client.delete_registered_model_alias(name, PREVIOUS)
        if str(known.get(CHALLENGER)) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
