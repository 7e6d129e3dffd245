"""A bundle as an MLflow model: models-from-code over safetensors, so that nothing in it is ever unpickled.

MLmodel, served.py, requirements.txt, input_example.json …   what MLflow needs to serve it
artifacts/bundle/                                            the bundle, byte for byte; all that maskbridge reads
"""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.bundle import Bundle
from pipelines.tracking_journal import link_or_copy

CODE = Path(__file__).with_name("served.py")
BUNDLE_IN_MODEL = "artifacts/bundle"
EXAMPLE_SIDE = 64
# What computes an answer; their own dependencies come with them.
REQUIRED = (
    "maskbridge", "mlflow", "torch", "torchvision", "timm", "segmentation-models-pytorch", "safetensors", "numpy",
    "scipy", "rasterio", "affine", "shapely", "geopandas", "pyogrio", "pyproj", "pillow", "pydantic",
)  # fmt: skip


def write_model(bundle: Bundle, target: Path, name: str) -> Path:
    """Write `bundle` as the MLflow model folder `target`, which must not exist. InputError where it cannot be."""
    import mlflow.pyfunc

    try:
        with tempfile.TemporaryDirectory(prefix="maskbridge-model-") as temporary:
            folder = Path(temporary) / "bundle"  # its name becomes the artifact's
            shutil.copytree(bundle.folder, folder, copy_function=link_or_copy)
            mlflow.pyfunc.save_model(
                path=target,
                python_model=str(CODE),
                artifacts={"bundle": str(folder)},
                signature=signature(bundle),
                input_example=example(bundle.adapter),
                pip_requirements=requirements(),
                model_config={"name": name},
                metadata={"maskbridge.sha256": bundle.sha256, "maskbridge.bundle_sha256": bundle.digest},
            )
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise InputError(f"{bundle.folder}: cannot be made a model of MLflow: {error.strerror or error}") from error
    return target


def requirements() -> list[str]:
    """`name==version` of what is installed here; a build's local mark (+cpu) is no version an index has."""
    found = []
    for name in REQUIRED:
        try:
            found.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return found


def signature(bundle: Bundle) -> Any:
    """One text column `image`; the thresholds as parameters, the model's own by default."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, Object, ParamSchema, ParamSpec, Property, Schema

    properties = Object([Property("class", "string"), Property("class_id", "long"), Property("score", "double")])
    geometry = Object([Property("type", "string"), Property("coordinates", AnyType())])
    feature = Object(
        [
            Property("type", "string"),
            Property("id", "string"),
            Property("properties", properties),
            Property("geometry", geometry),
        ]
    )
    outputs: list[Any] = [
        ColSpec("string", "type"),
        ColSpec("string", "crs", required=False),
        ColSpec("long", "width"),
        ColSpec("long", "height"),
        ColSpec(Array(feature), "features"),
    ]
    params = [
        ParamSpec("score", "double", float(bundle.thresholds.get("score", 0.5))),
        ParamSpec("min_area", "long", 4),
    ]
    return ModelSignature(Schema([ColSpec("string", "image")]), Schema(outputs), ParamSchema(params))


def example(adapter: DomainAdapter) -> Any:
    """A small image with as many bands as the adapter reads, in the form a request has."""
    import pandas

    return pandas.DataFrame({"image": [base64.b64encode(_image(adapter)).decode()]})


def _image(adapter: DomainAdapter) -> bytes:
    """A PNG of noise where three bands are enough, else a TIFF whose bands have the channels' names."""
    random = np.random.default_rng(0)
    names = [channel.name for channel in adapter.channels]
    if len(names) == 3:
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (EXAMPLE_SIDE, EXAMPLE_SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()
    from rasterio.io import MemoryFile

    count = max([len(names), *(number for channel in adapter.channels for number in _numbers(channel))])
    shape = {"width": EXAMPLE_SIDE, "height": EXAMPLE_SIDE, "count": count, "dtype": "uint16", "driver": "GTiff"}
    with MemoryFile() as memory:
        with memory.open(**shape) as raster:
            raster.write(random.integers(0, 3000, (count, EXAMPLE_SIDE, EXAMPLE_SIDE), dtype=np.uint16))
            for number, name in enumerate(names, start=1):
                raster.set_band_description(number, name)
        return bytes(memory.read())


def _numbers(channel: Any) -> list[int]:
    """Band numbers by which a source's band may be this channel."""
    return [number for number in channel.find if isinstance(number, int)]
