"""The model registry: bundles go in as they are and come out as they were.

A version is a model of MLflow (see `serving.package`) with the bundle in it, byte for byte; its tags hold the hashes
and scores. What is downloaded is the bundle, checked against those hashes and read by our own code: no model file is
executed or unpickled here. Versions from before November 2026 are the bundle alone.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.bundle import DESCRIPTION, REGISTRY, WEIGHTS, Bundle, load_bundle
from pipelines.keys import flatten, valid_key
from pipelines.samples import cache_folder
from pipelines.sinks.folder import sha256
from pipelines.tracking_store import connect, database_file, default_uri, first_line, readable, shown

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from pipelines.tracking import Run

log = logging.getLogger(__name__)

MODEL_FILES = "model"  # artifact folder of a run that holds its model
PLACE_TAG = "bundle_path"  # where in it the bundle lies
WEIGHTS_TAG = "sha256"
DESCRIPTION_TAG = "bundle_sha256"
SCORE_TAG = "score."
REFERENCE = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+|latest))")


@dataclass(frozen=True)
class RegisteredModel:
    """One version in the registry. `sha256` and `digest` are the hashes of weights and bundle.json."""

    name: str
    version: str
    uri: str
    run: str | None
    created: str  # ISO 8601, UTC
    aliases: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    sha256: str | None = None
    digest: str | None = None
    place: str = ""  # of the bundle among the version's files

    @property
    def reference(self) -> str:
        """`models:/name/version`, which means this version for ever (an alias may move)."""
        return f"{REGISTRY}{self.name}/{self.version}"


def register(
    bundle_folder: str | Path,
    name: str,
    run: "Run | None" = None,
    alias: str | None = None,
    scores: Mapping[str, Any] | None = None,
    *,
    uri: str | None = None,
) -> str:
    """Store a bundle with `run` (or a run of its own) as a new version of model `name`; return the version.

    `alias` is moved to it. `scores` (nested numbers; default the bundle's metrics) become tags.
    """
    from pipelines import tracking

    bundle = load_bundle(bundle_folder, check_shapes=False)
    check_names(name, alias)
    if run is None:
        with tracking.track(f"register {name}", uri=uri, required=True) as own:
            return register(bundle_folder, name, own, alias, scores)
    version = submit(bundle, name, run, alias, scores)
    if version is None:
        raise InputError(
            f"{shown(run.uri)}: does not answer; {name} is kept and registered by the next run, or `maskbridge sync`"
        )
    return version


def check_names(name: str, alias: str | None = None) -> None:
    """InputError for a model's name or an alias that MLflow takes none of."""
    if "/" in name or ":" in name or not name.strip():
        raise InputError(f"{name!r}: no name for a model; MLflow takes none that is empty or has '/' or ':'")
    if alias and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE)):
        raise InputError(f"{alias}: no alias for a model; letters, digits, _ and - make one, but not latest or v3")


def submit(
    bundle: Bundle, name: str, run: "Run", alias: str | None = None, scores: Mapping[str, Any] | None = None
) -> str | None:
    """`register` for who can wait: None where the store is away, which gets the model when it is back."""
    from pipelines.serving.package import BUNDLE_IN_MODEL, write_model

    numbers = flatten(bundle.metrics if scores is None else scores)
    tags = {WEIGHTS_TAG: bundle.sha256, DESCRIPTION_TAG: bundle.digest, PLACE_TAG: BUNDLE_IN_MODEL} | {
        valid_key(SCORE_TAG + key): f"{value:.6g}"
        for key, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    with tempfile.TemporaryDirectory(prefix="maskbridge-register-") as folder:
        version = run.model(write_model(bundle, Path(folder) / MODEL_FILES, name), name, alias, tags)
    if version:
        log.info("registered %s%s/%s%s", REGISTRY, name, version, f" as @{alias}" if alias else "")
    return version


def store_version(client: "MlflowClient", run_id: str, folder: Path, wanted: Mapping[str, Any]) -> str:
    """Store a model folder with its run and make a version of it, unless there is one already: told twice, made once.

    `wanted`: name, alias or None, tags.
    """
    name, tags = wanted["name"], wanted["tags"]
    client.log_artifacts(run_id, str(folder), MODEL_FILES)
    _ensure_model(client, name)
    quoted = name.replace("'", "\\'")
    known = [
        version.version
        for version in client.search_model_versions(f"name='{quoted}' and run_id='{run_id}'")
        if version.tags.get(DESCRIPTION_TAG) == tags[DESCRIPTION_TAG]
    ]
    if known:
        version = str(known[0])
    else:
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FILES}"
        version = str(client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)
    if wanted["alias"]:
        client.set_registered_model_alias(name, wanted["alias"], version)
    return version


def list_models(uri: str | None = None) -> list[dict[str, Any]]:
    """Every version, newest first within a name: {name, version, aliases, scores, created, run}.

    A SQLite file that is not there yet holds no models and is not made.
    """
    uri = uri or default_uri()
    if _is_missing(uri):
        return []
    client = connect(uri)
    with readable(uri):
        rows = [
            {
                "name": model.name,
                "version": model.version,
                "aliases": list(model.aliases),
                "scores": dict(model.scores),
                "created": model.created,
                "run": model.run,
            }
            for name, aliases in _models(client).items()
            for model in _versions(client, uri, name, aliases)
        ]
    return rows


def resolve(reference: str, uri: str | None = None) -> RegisteredModel:
    """The version `models:/name@alias`, `models:/name/3` or `models:/name/latest` names now.

    InputError names what is not there and what is.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference}: expected models:/name@alias, models:/name/3 or models:/name/latest")
    uri = uri or default_uri()
    name, alias, version = match["name"], match["alias"], match["version"]
    if _is_missing(uri):
        raise InputError(f"{reference}: no models are registered in {shown(uri)}")
    client = connect(uri)
    with readable(uri):
        models = _models(client)
        if name not in models:
            raise InputError(f"{reference}: {_unknown_name(name, list(models), uri)}")
        versions = _versions(client, uri, name, models[name])
    if not versions:
        raise InputError(f"{reference}: model {name} has no versions in {shown(uri)}")
    if version == "latest":
        return versions[0]
    for found in versions:
        if found.version == version or (alias is not None and alias in found.aliases):
            return found
    if alias is not None:
        known = ", ".join(f"{a} (version {v})" for a, v in sorted(models[name].items())) or "none"
        raise InputError(f"{reference}: model {name} has no alias {alias}; its aliases: {known}")
    known = ", ".join(found.version for found in reversed(versions))
    raise InputError(f"{reference}: model {name} has no version {version}; its versions: {known}")


def download(reference: str, uri: str | None = None) -> Path:
    """Folder of the bundle that `reference` names, its files checked against the registry's hashes."""
    return download_version(resolve(reference, uri))


def download_version(model: RegisteredModel) -> Path:
    """Folder of a version's bundle: the store's own where that is a local folder, else a copy in the cache."""
    if model.sha256 is None or model.digest is None:
        raise InputError(f"{model.reference}: was not registered by maskbridge (no hashes among its tags)")
    cached = cache_folder().parent / "models" / model.digest
    if _fault(cached, model) is None:
        return cached
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.utils.file_utils import local_file_uri_to_path

    with readable(model.uri):
        source = connect(model.uri).get_model_version_download_uri(model.name, model.version)
    source = f"{source}/{_inside(model)}".rstrip("/")
    if source.startswith("file:"):
        folder = Path(local_file_uri_to_path(source))
        _require_intact(folder, model)
        return folder
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cached.parent) as temporary:
            fresh = Path(mlflow.artifacts.download_artifacts(source, dst_path=temporary, tracking_uri=model.uri))
            _require_intact(fresh, model)
            _place(fresh, cached, Path(temporary) / "damaged")
    except MlflowException as error:
        raise InputError(f"{model.reference}: cannot be downloaded: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"{model.reference}: cannot be kept in {cached}: {error.strerror or error}") from error
    _require_intact(cached, model)
    return cached


def _inside(model: RegisteredModel) -> str:
    """`place` as it may be used: a path that stays below the version's files."""
    path = PurePosixPath(model.place)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{model.reference}: its tag {PLACE_TAG} leads out of the model: {model.place}")
    return model.place


def _place(fresh: Path, cached: Path, aside: Path) -> None:
    """Rename into the cache; whoever was first with the same content has done our work."""
    if cached.exists():  # damaged, or it would have been used
        cached.rename(aside)
    try:
        fresh.rename(cached)
    except OSError:
        if not cached.is_dir():
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _fault(folder: Path, model: RegisteredModel) -> str | None:
    """What is wrong with a folder that should hold `model`, None where nothing is."""
    for file, expected in ((DESCRIPTION, model.digest), (WEIGHTS, model.sha256)):
        if not (folder / file).is_file():
            return f"{file} is missing"
        actual = sha256(folder / file)
        if actual != expected:
            return f"{file} has sha256 {actual}, the registry says {expected}"
    return None


def _require_intact(folder: Path, model: RegisteredModel) -> None:
    fault = _fault(folder, model)
    if fault:
        raise InputError(f"{model.reference}: {fault} ({folder})")


def _is_missing(uri: str) -> bool:
    file = database_file(uri)
    return file is not None and not file.exists()


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _models(client: "MlflowClient") -> dict[str, dict[str, str]]:
    """Registered names with their aliases {alias: version}."""
    found: dict[str, dict[str, str]] = {}
    token = None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        found |= {model.name: {a: str(v) for a, v in model.aliases.items()} for model in page}
        token = page.token
        if not token:
            return dict(sorted(found.items()))


def _versions(client: "MlflowClient", uri: str, name: str, aliases: Mapping[str, str]) -> list[RegisteredModel]:
    """All versions of a model, newest first."""
    found: list[ModelVersion] = []
    token = None
    quoted = name.replace("'", "\\'")
    while True:
        page = client.search_model_versions(f"name='{quoted}'", max_results=100, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    found.sort(key=lambda version: int(version.version), reverse=True)
    return [_registered(version, uri, aliases) for version in found]


def _registered(version: "ModelVersion", uri: str, aliases: Mapping[str, str]) -> RegisteredModel:
    tags = version.tags
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return RegisteredModel(
        name=version.name,
        version=str(version.version),
        uri=uri,
        run=version.run_id or None,
        created=created.isoformat(timespec="seconds"),
        aliases=tuple(sorted(a for a, v in aliases.items() if v == str(version.version))),
        scores={
            key.removeprefix(SCORE_TAG): float(value)
            for key, value in sorted(tags.items())
            if key.startswith(SCORE_TAG)
        },
        sha256=tags.get(WEIGHTS_TAG),
        digest=tags.get(DESCRIPTION_TAG),
        place=tags.get(PLACE_TAG, ""),
    )


def _unknown_name(name: str, known: list[str], uri: str) -> str:
    if not known:
        return f"no models are registered in {shown(uri)}"
    guess = get_close_matches(name, known, n=1)
    hint = f" (did you mean {guess[0]}?)" if guess else ""
    return f"no model is named {name}{hint}; there are {', '.join(known)}"
