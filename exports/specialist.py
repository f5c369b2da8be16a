"""A finished specialist: a folder that answers raw texts or raw images with a label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from exports.preprocess import ImagePreprocess, InputError, TextPreprocess, load_preprocess
from exports.runtime import run_logits, session

MODEL_FILE = "specialist.onnx"


@dataclass(frozen=True)
class Specialist:
    """An open session with the preprocessing and the label names that belong to it."""

    open_session: ort.InferenceSession
    preprocess: ImagePreprocess | TextPreprocess
    labels: tuple[str, ...]

    @classmethod
    def load(cls, directory: Path, threads: int = 1) -> Specialist:
        """Open a folder with specialist.onnx, preprocess.json and, for text, tokenizer.json.

        Raises:
            InputError: a file is missing or unreadable.
        """
        directory = Path(directory)
        model = directory / MODEL_FILE
        if not model.is_file():
            raise InputError(f"{model}: no such file; name a folder that winnow wrote")
        preprocess, labels = load_preprocess(directory)
        return cls(session(model, threads), preprocess, tuple(labels))

    def logits(self, raws: Iterable[Any], batch_size: int = 32) -> np.ndarray:
        """Return logits, float32 (N, K), in the order of the inputs.

        Texts of equal length run together: no text is padded, so its logits do not depend on its
        neighbours, and no time goes into padding.

        Raises:
            InputError: a row cannot be read; it is named.
        """
        if isinstance(self.preprocess, TextPreprocess):
            return self._text_logits(self.preprocess.encode(raws), batch_size)
        rows = list(raws)
        parts = []
        for start in range(0, len(rows), batch_size):
            # Decoded a batch at a time: a large set of images must not be in memory at once.
            images = [
                self.preprocess.decode(raw, _name(raw, start + offset))
                for offset, raw in enumerate(rows[start : start + batch_size])
            ]
            feed = {"pixel_values": self.preprocess.normalise(np.stack(images))}
            parts.append(run_logits(self.open_session, feed))
        return np.concatenate(parts) if parts else self._nothing()

    def _text_logits(self, encoded: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
        """Run token ids in batches of equal length."""
        preprocess = cast(TextPreprocess, self.preprocess)
        by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(encoded):
            by_length.setdefault(len(ids), []).append(index)
        result = self._nothing(len(encoded))
        for indices in by_length.values():
            for start in range(0, len(indices), batch_size):
                chosen = indices[start : start + batch_size]
                feed = preprocess.pad([encoded[index] for index in chosen])
                result[chosen] = run_logits(self.open_session, feed)
        return result

    def _nothing(self, rows: int = 0) -> np.ndarray:
        """Return logits that are still to be filled."""
        return np.zeros((rows, len(self.labels)), np.float32)

    def predict(self, raws: Iterable[Any], batch_size: int = 32) -> list[dict[str, Any]]:
        """Return {"label", "probability"} for each input: the likeliest class and its softmax."""
        logits = self.logits(raws, batch_size).astype(np.float64)
        exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities = exps / exps.sum(axis=1, keepdims=True)
        return [
            {"label": self.labels[best], "probability": float(row[best])}
            for row, best in zip(probabilities, probabilities.argmax(axis=1), strict=True)
        ]


def _name(raw: Any, row: int) -> str:
    """Return what an error calls an image of a batch."""
    return f"row {row} ({raw})" if isinstance(raw, Path) else f"row {row}"
