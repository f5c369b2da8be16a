"""SetFit with its defaults on the same shots; for study_peers.py.

    PEER_PYTHON benchmarks/peers/setfit_shots.py JOB.json OUT

Writes the probabilities on the test set to OUT/answers.npy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._torchvision import ensure_torchvision

ensure_torchvision()

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from datasets import Dataset  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from setfit import SetFitModel, Trainer, TrainingArguments  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402


def main() -> None:
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    shots, test = (
        pq.read_table(Path(job["folder"]) / f"{name}.parquet").to_pydict()
        for name in ("support", "test")
    )
    body = SentenceTransformer(job["model"])
    model = SetFitModel(model_body=body, model_head=LogisticRegression())  # as from_pretrained
    told = Dataset.from_dict({"text": shots["text"], "label": shots["label"]})
    settings = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        seed=job["seed"],
        max_steps=job["max_steps"],
        save_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=told)
    trainer.train()
    found = np.asarray(model.predict_proba(test["text"]), dtype=np.float64)
    np.save(out / "answers.npy", found)
    size = sum(p.numel() * p.element_size() for p in body.parameters())
    (out / "facts.json").write_text(json.dumps({"bytes": size}))


if __name__ == "__main__":
    main()
