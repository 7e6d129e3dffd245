"""The code of a registered model: `mlflow models serve` runs this file with maskbridge's own packages.

It holds no weights; those are the bundle's, checked against their hashes before the first answer.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel, PythonModelContext

from adapters.errors import InputError


class Refusal(MlflowException):
    """Bad input as one line with status 400; MLflow would put its own words and the data's text around it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=BAD_REQUEST)
        self.reason = reason

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.reason})


class SegmentationModel(PythonModel):
    """A row `image` (base64 PNG, JPEG or TIFF) in, a FeatureCollection out."""

    # MLflow reads type hints of `predict` as a schema; the model has a signature.

    def load_context(self, context: PythonModelContext) -> None:
        from pipelines.bundle import load_bundle
        from pipelines.serving.answers import Answerer

        name = (context.model_config or {}).get("name")
        bundle = load_bundle(Path(context.artifacts["bundle"]), name=name)
        self._answer = Answerer(bundle)
        self._one_at_a_time = threading.Lock()

    def predict(self, context, model_input, params=None):
        try:
            with self._one_at_a_time:
                return [self._answer(image, params) for image in model_input["image"]]
        except InputError as error:
            raise Refusal(" ".join(str(error).split())) from error


mlflow.models.set_model(SegmentationModel())
