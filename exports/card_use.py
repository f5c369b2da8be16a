"""The card's section on how to call the specialist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEEDS = (
    "It needs mlflow, onnxruntime, tokenizers, numpy, Pillow and pandas, and no torch; the folder "
    "alone needs winnow in the place of mlflow. For the registry, set `MLFLOW_TRACKING_URI` to the "
    "store that the run wrote to (`sqlite:///.winnow/mlflow.db`, unless you named another)."
)


def use_section(report: Mapping[str, Any]) -> str:
    """Return how to call it from Python, from the command line and over HTTP."""
    text = report["task"]["modality"] == "text"
    uri = _uri(report)
    parts = ["From Python, beside this card:", _python_folder(text)]
    if uri:
        parts += ["From Python, out of the registry:", _python_registry(uri, text)]
    parts += ["From the command line:", _command_line(uri, text)]
    if uri:
        parts += ["Over HTTP:", _http(uri, text)]
    return "\n\n".join([*parts, _NEEDS])


def _uri(report: Mapping[str, Any]) -> str | None:
    """Return the address that stays right: the champion's where this run is it."""
    stored = report.get("mlflow") or {}
    uri, alias = stored.get("model_uri"), stored.get("alias")
    if uri and alias and str(uri).startswith("models:/"):
        return f"{str(uri).rpartition('/')[0]}@{alias}"
    return str(uri) if uri else None


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _python_folder(text: bool) -> str:
    example = '"a text to sort"' if text else '"photo.jpg"'
    return _code(
        "python",
        "from pathlib import Path",
        "",
        "from exports.specialist import Specialist",
        "",
        'specialist = Specialist.load(Path("."))  # the folder of this card',
        f"print(specialist.predict([{example}]))  # label and probability",
        "dataset = dataset.map(specialist.as_transform(), batched=True)  # one of `datasets`",
    )


def _python_registry(uri: str, text: bool) -> str:
    example = '"a text to sort"' if text else 'open("photo.jpg", "rb").read()'
    return _code(
        "python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("{uri}")',
        f"print(model.predict([{example}]))  # a data frame: label, probability",
    )


def _command_line(uri: str | None, text: bool) -> str:
    model = uri or "."
    if text:
        one, many = '"a text to sort"', "texts.csv --column text"
    else:
        one, many = "photo.jpg", "photos/"
    return _code(
        "sh",
        f"winnow predict {model} {one}",
        f"winnow predict {model} {many} --out answers.csv",
    )


def _http(uri: str, text: bool) -> str:
    address = "http://127.0.0.1:5001/invocations -H 'Content-Type: application/json'"
    if text:
        send = [f"curl {address} \\", """  -d '{"inputs": ["a text to sort"]}'"""]
    else:
        send = [
            """printf '{"inputs": ["%s"]}' "$(base64 -w0 photo.jpg)" |""",
            f"  curl {address} -d @-",
        ]
    return _code("sh", f"mlflow models serve -m {uri} --env-manager local --port 5001 &", *send)
