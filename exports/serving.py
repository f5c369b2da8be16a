"""The specialist as an MLflow model: the script that MLflow runs when it loads the model.

MLflow's models-from-code form: nothing is pickled. What `exports/specialist.py` imports travels
beside it as code, the specialist's folder as the artifact 'specialist'. The serving host needs
mlflow, onnxruntime, tokenizers, numpy and Pillow, and neither torch nor timm nor transformers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from exports.preprocess import InputError, from_base64
from exports.specialist import Specialist

# MLflow's scoring server sets both in the process that answers
_OVER_HTTP = {"__pyfunc_model_path__", "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"}


class ServedSpecialist(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Answers raw texts, or raw images (bytes, path, base64 text, array), with labels.

    `model_config` takes `provider` ('cpu' or 'cuda') and `threads`. Over HTTP an image is base64
    text or nested lists of pixels, never a path: a stranger must not name the server's files.
    """

    def load_context(self, context: Any) -> None:
        """Open the specialist's folder."""
        asked = context.model_config or {}
        self.specialist = Specialist.load(
            Path(context.artifacts["specialist"]),
            threads=int(asked.get("threads", 1)),
            provider=str(asked.get("provider", "cpu")),
        )

    def predict(self, model_input: list[Any], params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row an input, with the columns `label` and `probability`."""
        try:
            if _OVER_HTTP & set(os.environ) and self.specialist.modality == "image":
                model_input = [_decoded(raw, row) for row, raw in enumerate(model_input)]
            rows = self.specialist.predict(model_input)
        except InputError as problem:  # the server answers 400 with this line, not a traceback
            raise MlflowException(str(problem), error_code=INVALID_PARAMETER_VALUE) from None
        return pd.DataFrame(rows, columns=["label", "probability"])


# MLflow wraps `predict` of a subclass in a check against its annotation, which refuses a Series,
# an array and a single text. Inputs are brought to a list before that check.
_checked_predict = ServedSpecialist.predict


def _predict(
    self: ServedSpecialist, model_input: list[Any], params: dict[str, Any] | None = None
) -> pd.DataFrame:
    """Return one row an input, with the columns `label` and `probability`."""
    return _checked_predict(self, _raws(model_input), params)


ServedSpecialist.predict = _predict  # type: ignore[method-assign]


def _raws(model_input: Any) -> list[Any]:
    """Return the inputs one by one, whatever container they came in."""
    if isinstance(model_input, pd.DataFrame):
        model_input = model_input.iloc[:, 0]
    if isinstance(model_input, pd.Series):
        model_input = model_input.tolist()
    if isinstance(model_input, np.ndarray):
        pixels = model_input.dtype != object and model_input.dtype.kind not in "US"
        if pixels and model_input.ndim < 4:  # one image, not a batch of rows
            return [model_input]
        return list(model_input.reshape(-1)) if not pixels else list(model_input)
    if isinstance(model_input, str | bytes | Path):
        return [model_input]
    # Nested lists are an image's pixels that came as JSON.
    return [np.asarray(raw) if isinstance(raw, list) else raw for raw in model_input]


def _decoded(raw: Any, row: int) -> Any:
    """Return the bytes of an image that came as base64 text, with or without `data:` prefix."""
    if not isinstance(raw, str):
        return raw
    return from_base64(raw.partition(",")[2] if raw.startswith("data:") else raw, f"row {row}")


mlflow.models.set_model(ServedSpecialist())
