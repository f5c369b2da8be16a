"""The served model: in MLflow, in a process that refuses torch, timm and transformers."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exports.preprocess import InputError
from exports.runtime import run_logits, session
from exports.specialist import Specialist
from tasks.cache import import_closure

from .conftest import CLASSES, SIDE, Exported
from .test_preprocess import word_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LABELS = [f"label {index}" for index in range(CLASSES)]
IMAGE = {"size": [SIDE, SIDE], "resize": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}

# A host without torch: an import hook is stricter than an environment, for it names the culprit.
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm", "transformers", "onnx", "scipy", "sklearn"}:
            raise ImportError(f"{name} is not on the serving host")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def folder(exported: Callable[[str], Exported], tmp_path_factory) -> Callable[[str], Path]:
    """A specialist's folder, as a run leaves it."""
    made: dict[str, Path] = {}

    def get(modality: str) -> Path:
        if modality not in made:
            path = made[modality] = tmp_path_factory.mktemp(modality)
            item = exported("bert" if modality == "text" else "deit")
            shutil.copy(item.fp32, path / "specialist.onnx")
            settings = {"modality": modality, "labels": LABELS}
            if modality == "text":
                settings |= {"max_length": 12, "pad_id": 0}
                (path / "tokenizer.json").write_text(word_tokenizer().to_str())
            else:
                settings |= IMAGE
            (path / "preprocess.json").write_text(json.dumps(settings))
        return made[modality]

    return get


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_specialist_answers_texts(folder) -> None:
    specialist = Specialist.load(folder("text"))
    texts = ["my card", "my card lost", "lost", "card my", "my"]
    logits = specialist.logits(texts, batch_size=2)
    for text, row in zip(texts, logits, strict=True):  # neighbours do not matter
        np.testing.assert_array_equal(specialist.logits([text])[0], row)
    answers = specialist.predict(texts)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    for answer, row in zip(answers, exps / exps.sum(axis=1, keepdims=True), strict=True):
        assert answer["label"] == LABELS[row.argmax()]
        assert answer["probability"] == pytest.approx(row.max(), rel=1e-5)
    assert specialist.predict([]) == []


def test_specialist_answers_images(folder, tmp_path) -> None:
    specialist = Specialist.load(folder("image"))
    Image.fromarray(photo(1)).save(tmp_path / "x.png")
    raws = [photo(0), png(photo(0)), tmp_path / "x.png", photo(1)]
    logits = specialist.logits(raws, batch_size=3)
    feed = {"pixel_values": specialist.preprocess(raws)["pixel_values"]}
    np.testing.assert_allclose(logits, run_logits(specialist.open_session, feed), atol=1e-5)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)
    np.testing.assert_allclose(logits[2], logits[3], atol=1e-5)
    assert len(specialist.predict(raws)) == 4


def test_bad_rows_and_folders_are_named(folder, tmp_path) -> None:
    with pytest.raises(InputError, match="row 1"):
        Specialist.load(folder("text")).predict(["my card", ""])
    with pytest.raises(InputError, match="row 2"):
        Specialist.load(folder("image")).predict([photo(), photo(), b"broken"], batch_size=1)
    with pytest.raises(InputError, match=r"specialist\.onnx: no such file"):
        Specialist.load(tmp_path)
    shutil.copytree(folder("text"), tmp_path / "t")
    (tmp_path / "t" / "preprocess.json").unlink()
    with pytest.raises(InputError, match=r"preprocess\.json"):
        Specialist.load(tmp_path / "t")


def run(script: str, folder: Path) -> str:
    """Run a script in a process of its own; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///m.db"}
    environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_prediction_without_torch(folder) -> None:
    for modality, raws in (("text", ["my card", "lost"]), ("image", [photo().tolist()])):
        script = f"""{REFUSE}
import json, numpy as np
from pathlib import Path
from exports.specialist import Specialist
raws = json.loads({json.dumps(json.dumps(raws))})
if {modality == "image"}:
    raws = [np.asarray(raw, np.uint8) for raw in raws]
print(json.dumps(Specialist.load(Path({str(folder(modality))!r})).predict(raws)))
"""
        expected = Specialist.load(folder(modality)).predict(
            raws if modality == "text" else [photo()]
        )
        assert json.loads(run(script, folder(modality))) == expected


LOG = """
import mlflow
from mlflow.models import Model
experiment = mlflow.create_experiment("e", artifact_location={store!r})
with mlflow.start_run(experiment_id=experiment) as run:
    pass
Model.log(
    None,
    mlflow.pyfunc,
    name="specialist",
    run_id=run.info.run_id,
    registered_model_name="served",
    python_model={serving!r},
    artifacts={{"specialist": {folder!r}}},
    code_paths=[{code!r}],
    input_example={example},
    pip_requirements=["mlflow", "numpy", "onnxruntime", "pillow", "tokenizers"],
)
mlflow.MlflowClient().set_registered_model_alias("served", "champion", 1)
"""

ASK = """
import json, os
os.environ["PYTHONPATH"] = ""
sys.path[:] = [entry for entry in sys.path if entry not in ({root!r}, "")]
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("models:/served@champion")
answers = []
for form in {forms}:
    frame = model.predict(form)
    assert list(frame.columns) == ["label", "probability"], frame
    answers.append(frame.to_dict("records"))
assert model.metadata.signature is not None
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"torch", "timm", "transformers"}}, loaded
print(json.dumps(answers))
"""

TEXT_FORMS = """[
    ["my card", "lost"],
    pd.Series(["my card", "lost"]),
    pd.DataFrame({"text": ["my card", "lost"]}),
    np.array(["my card", "lost"]),
    "my card",
]"""
IMAGE_FORMS = """[
    [open("x.png", "rb").read(), "x.png"],
    [np.load("x.npy"), open("x.png", "rb").read()],
    np.stack([np.load("x.npy")] * 2),
    pd.DataFrame({"image": [open("x.png", "rb").read(), "x.png"]}),
    pd.Series(["x.png", "x.png"]),
    np.load("x.npy"),
]"""


def serve(modality: str, folder: Path, place: Path) -> list[list[dict[str, object]]]:
    """Log a specialist in one process, load and ask it in another that refuses torch."""
    code = place / "code" / "exports"
    code.mkdir(parents=True)
    for path in import_closure("exports.specialist").values():
        shutil.copy(path, code)
    np.save(place / "x.npy", photo())
    (place / "x.png").write_bytes(png(photo()))
    example = '["my card"]' if modality == "text" else '[open("x.png", "rb").read()]'
    logged = LOG.format(
        code=str(code),
        folder=str(folder),
        store=(place / "artifacts").as_uri(),
        serving=str(ROOT / "exports" / "serving.py"),
        example=example,
    )
    run(logged, place)
    forms = TEXT_FORMS if modality == "text" else IMAGE_FORMS
    return json.loads(run(REFUSE + ASK.format(root=str(ROOT), forms=forms), place))


def test_mlflow_serves_raw_texts_without_torch(folder, tmp_path) -> None:
    answers = serve("text", folder("text"), tmp_path)
    expected = Specialist.load(folder("text")).predict(["my card", "lost"])
    for answer in answers:
        assert answer == expected[: len(answer)]


@pytest.mark.slow
def test_mlflow_serves_raw_images_without_torch(folder, tmp_path) -> None:
    answers = serve("image", folder("image"), tmp_path)
    expected = Specialist.load(folder("image")).predict([photo()])[0]
    for answer in answers:
        for row in answer:
            assert row["label"] == expected["label"]
            assert row["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_the_specialist_is_the_graph(folder) -> None:
    path = folder("text")
    feed = Specialist.load(path).preprocess(["my card lost"])
    direct = run_logits(session(path / "specialist.onnx"), feed)
    np.testing.assert_array_equal(Specialist.load(path).logits(["my card lost"]), direct)
