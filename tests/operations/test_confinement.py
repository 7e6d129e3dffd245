"""A flow's parameters cannot reach outside of the roots: not by `..`, links, addresses, GDAL's prefixes or patterns."""

from pathlib import Path

import pytest

from adapters.errors import InputError
from pipelines.config import DataItem, ModelOptions, RunConfig, TrackingOptions
from pipelines.confinement import confine, confined


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inside = tmp_path / "data"
    (inside / "scenes").mkdir(parents=True)
    (inside / "scenes" / "a.tif").touch()
    (tmp_path / "secret.tif").touch()
    (inside / "way-out").symlink_to(tmp_path)
    (inside / "leaf.tif").symlink_to(tmp_path / "secret.tif")
    (inside / "good.tif").symlink_to(inside / "scenes" / "a.tif")
    monkeypatch.setenv("MASKBRIDGE_ROOTS", f"{inside}:{tmp_path / 'out'}")
    monkeypatch.delenv("MASKBRIDGE_ADDRESSES", raising=False)
    return inside


@pytest.mark.parametrize("path", ["scenes/a.tif", "scenes/../scenes/a.tif", "good.tif", "new/folder", "scenes/*.tif"])
def test_what_lies_inside_passes_as_it_was_given(root: Path, path: str) -> None:
    assert confined(f"{root}/{path}") == f"{root}/{path}"
    assert confined(root.parent / "out" / "x") == str(root.parent / "out" / "x")


@pytest.mark.parametrize(
    "path",
    [
        "{root}/../secret.tif",
        "{root}/way-out/secret.tif",
        "{root}/leaf.tif",
        "{root}-2/a.tif",
        "/etc/passwd",
        "/",
        "",
        "relative.tif",
        "{root}/scenes/*/../../../secret.tif",
        "{root}/way-out/*.tif",
        "{root}/*.tif",  # one of them is a link to the outside
        "{root}/**/secret.tif/../../*.tif",
        "/vsicurl/https://example.org/a.tif",
        "/vsizip/{root}/a.zip/b.tif",
        "GTIFF_DIR:1:{root}/scenes/a.tif",
        "<VRTDataset><SourceFilename>/etc/shadow</SourceFilename></VRTDataset>",
        "https://example.org/a.tif",
        "file:///etc/passwd",
        "s3://bucket/a.tif",
        "{root}/a\0.tif",
    ],
)
def test_what_lies_outside_is_refused(root: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    with pytest.raises(InputError, match="source"):
        confined(path.format(root=root) if "<" not in path else path, "source")


def test_addresses_are_named_by_their_beginnings(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKBRIDGE_ADDRESSES", "https://tiles.example.org/public/ s3://scenes/")
    for good in ("https://tiles.example.org/public/a.tif", "s3://scenes/2026/a.tif"):
        assert confined(good) == good
    for bad in (
        "https://tiles.example.org/private/a.tif",
        "https://tiles.example.org.evil.org/public/a.tif",
        "https://tiles.example.org/public/../private/a.tif",
        "https://tiles.example.org/public/%2e%2e/private/a.tif",
        "s3://scenes-of-others/a.tif",
    ):
        with pytest.raises(InputError, match="no address that runs may read"):
            confined(bad)


def test_passwords_in_addresses_are_not_repeated(root: Path) -> None:
    with pytest.raises(InputError) as told:
        confined("https://me:hunter2@example.org/a.tif?sig=hunter3", "source")
    assert "hunter" not in str(told.value) and "***@example.org/a.tif" in str(told.value)


def test_nothing_is_confined_where_no_root_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKBRIDGE_ROOTS", raising=False)
    monkeypatch.delenv("MASKBRIDGE_ADDRESSES", raising=False)
    assert confined("/etc/passwd") == "/etc/passwd"
    monkeypatch.setenv("MASKBRIDGE_ADDRESSES", "https://example.org/")  # then folders are refused, all of them
    with pytest.raises(InputError, match="MASKBRIDGE_ROOTS is empty"):
        confined("/etc/passwd")


def config(source: str, **settings) -> RunConfig:
    return RunConfig(adapter={}, data=(DataItem(source=source, labels=None),), **settings)


def test_paths_in_nested_parameters_are_found_by_their_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = config(f"{root}/scenes/a.tif", model=ModelOptions(weights="timm"))
    confine({"config": good, "out": f"{root}/x", "name": "/not/a/path", "model": "models:/roads@champion", "n": 3})
    for bad, name in (
        ({"config": config("/etc/passwd")}, r"config\.data\.source"),
        ({"config": config(f"{root}/a", model=ModelOptions(weights="/etc/x"))}, r"config\.model\.weights"),
        ({"config": config(f"{root}/a", tracking=TrackingOptions(uri="sqlite:////etc/x.db"))}, "tracking.uri"),
        ({"config": good.model_dump() | {"data": [{"source": "/etc/passwd"}]}}, r"config\.data\.source"),
        ({"out": "/tmp/../etc"}, "out"),
        ({"executor": {"address": "tcp://elsewhere:8786"}}, r"executor\.address"),
    ):
        with pytest.raises(InputError, match=name):
            confine(bad)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    confine({"config": config(f"{root}/a", tracking=TrackingOptions(uri="http://mlflow:5000"))})


# Strings in the flows' forms that name no file: a new one has to be put here or into PATH_FIELDS.
NOT_PATHS = {
    *(
        "name",
        "patient",
        "preset",
        "device",
        "precision",
        "experiment",
        "register_as",
        "alias",
        "kind",
        "role",
        "domain",
    ),
    *("class_column", "default_class", "layer", "augment", "version", "data_digest", "asset", "series"),
    "pattern",  # of files inside the folder; SceneSearch refuses any that climbs
}


def strings_of(schema: dict, definitions: dict, name: str, seen: frozenset[str] = frozenset()):
    """Field names of every free string (no enum) in a JSON schema, with where they are."""
    if "$ref" in schema:
        target = schema["$ref"].rpartition("/")[2]
        if target not in seen:
            yield from strings_of(definitions[target], definitions, name, seen | {target})
    for word in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for part in schema.get(word, ()):
            yield from strings_of(part, definitions, name, seen)
    if isinstance(schema.get("items"), dict):
        yield from strings_of(schema["items"], definitions, name, seen)
    for key, part in schema.get("properties", {}).items():
        yield from strings_of(part, definitions, key, seen)
    if schema.get("type") == "string" and "enum" not in schema and "const" not in schema:
        yield name
