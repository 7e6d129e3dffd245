#!/bin/sh
# Users and databases of a fresh PostgreSQL; run by its image, and by `make up-native`, before anything else connects.
# Passwords come from the environment and are never on a command line. Safe to repeat: it then makes all passwords what
# the environment says. Connects through the socket, which only the owner of the server's folder can reach.
set -eu

psql -v ON_ERROR_STOP=1 --no-psqlrc -q -U postgres -d postgres <<'SQL'
\getenv postgres_password POSTGRES_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['prefect', 'mlflow']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE postgres PASSWORD :'postgres_password';
ALTER ROLE prefect PASSWORD :'prefect_password';
ALTER ROLE mlflow PASSWORD :'mlflow_password';
SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('prefect', 'prefect'), ('mlflow', 'mlflow'), ('mlflow_auth', 'mlflow')) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
SELECT format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', name)
FROM unnest(ARRAY['prefect', 'mlflow', 'mlflow_auth']) AS name \gexec
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
SQL
