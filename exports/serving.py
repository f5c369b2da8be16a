"""The specialist as an MLflow model: the script that MLflow runs when it loads the model.

MLflow's models-from-code form: nothing is pickled. `exports/preprocess.py`, `exports/runtime.py`
and `exports/specialist.py` travel beside it as code, the specialist's folder as the artifact
'specialist'. The serving host needs mlflow, onnxruntime, tokenizers, numpy and Pillow, and neither
torch nor timm nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd

from exports.specialist import Specialist


class ServedSpecialist(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Answers raw texts, or raw images (bytes, path, base64 text, array), with labels."""

    def load_context(self, context: Any) -> None:
        """Open the specialist's folder."""
        self.specialist = Specialist.load(Path(context.artifacts["specialist"]))

    def predict(self, model_input: list[Any], params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row an input, with the columns `label` and `probability`."""
        rows = self.specialist.predict(model_input)
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


mlflow.models.set_model(ServedSpecialist())
