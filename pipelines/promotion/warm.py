"""Imports everything a bundle of any architecture needs: done once by the server whose forks measure (see `budget`).

A fork that had to import these itself would count them as the model's seconds and the model's memory.
"""

import importlib

from maskformer.model import PIXEL_DECODERS, QUERY_DECODERS

MODULES = (
    *(place.partition(":")[0] for place in (*PIXEL_DECODERS.values(), *QUERY_DECODERS.values())),
    *("maskformer.backbones", "maskformer.baseline", "maskformer.inference", "maskformer.stdc"),
    *(f"pipelines.sources.{name}" for name in ("arrays", "geotiff", "picture", "resampled", "stack")),
    *(f"pipelines.volumes.{name}" for name in ("dicom", "nifti", "prediction")),
    *("pipelines.promotion.probe", "pipelines.promotion.volumes.gate"),
)

for name in MODULES:
    importlib.import_module(name)
