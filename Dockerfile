# The one image of the service: servers, workers and commands, from the lock. `docker compose build` makes it (8 GB).
# These same steps are run as a script, in a clean folder, by tests/operations/test_image.py.
FROM python:3.11-slim-bookworm

# No dependency phones home, no model file runs code, every process finds the image's own Python first.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1 \
    DO_NOT_TRACK=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false \
    MLFLOW_LOGGING_LEVEL=WARNING \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false

# What the wheels expect of the system, read from their own headers; all else they bring along.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libexpat1 libgomp1 libquadmath0 libstdc++6 zlib1g \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
RUN python -m venv /opt/venv && /opt/venv/bin/python -m pip install -q --no-cache-dir uv==0.13.9

# The environment alone first: it changes with the lock, and the code every day.
COPY requirements.lock ./
RUN uv pip sync -q --python /opt/venv/bin/python --require-hashes requirements.lock

# Only for compose.s3.yaml: a second, small lock with the object store's client.
ARG EXTRA_LOCK=
COPY deploy/object-store.lock ./deploy/
RUN if [ -n "$EXTRA_LOCK" ]; then \
      uv pip install -q --python /opt/venv/bin/python --no-deps --require-hashes -r "$EXTRA_LOCK"; \
    fi

COPY . ./
RUN /opt/venv/bin/python -m pip install -q --no-deps --no-build-isolation --no-cache-dir -e .

# Volumes take these folders' rights; the service runs as any user (MASKBRIDGE_USER), never as root.
RUN mkdir -p /cache /artifacts /data /results && chmod 1777 /cache /artifacts

ARG GIT_REVISION=
ENV MASKBRIDGE_GIT_REVISION=$GIT_REVISION
USER 1000:1000
CMD ["maskbridge", "--help"]
