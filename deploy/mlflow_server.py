"""MLflow's server over an up-to-date database: `python -m deploy.mlflow_server --host H --port P`.

The database comes from MLFLOW_BACKEND_STORE_URI and its password from PGPASSWORD, so that neither stands in a list of
processes. Two things are done first: a database of an older version is migrated (MLflow refuses it; a backup before an
upgrade is yours to make), and the administrator's password becomes what the environment says (MLflow itself reads it
only for a new database), so that rotating it is a change of .env and a restart.
"""

from __future__ import annotations

import os
import subprocess
import sys

ARGUMENTS = ("--app-name", "basic-auth", "--serve-artifacts", "--workers", "1")


def main() -> int:
    """Prepare, then become the server: signals and exit code are its own."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    if _has_tables(uri):
        code = subprocess.run(["mlflow", "db", "upgrade", uri], check=False).returncode
        if code:
            return code
    _set_password()
    os.execvp("mlflow", ["mlflow", "server", *ARGUMENTS, *sys.argv[1:]])


def _has_tables(uri: str) -> bool:
    """Whether MLflow was here before: `db upgrade` takes no empty database, the server makes one by itself."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        return "alembic_version" in sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _set_password() -> None:
    from mlflow.server.auth.config import read_auth_config
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    config = read_auth_config()
    store = SqlAlchemyStore()
    store.init_db(config.database_uri)
    if config.admin_username and store.has_user(config.admin_username):
        store.update_user(config.admin_username, password=config.admin_password)
    store.engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
