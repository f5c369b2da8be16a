"""A finished specialist: a folder that answers raw texts or raw images with a label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from exports.columns import input_column, raw_of
from exports.hosts import warn_of_host
from exports.preprocess import ImagePreprocess, InputError, TextPreprocess, load_preprocess
from exports.runtime import SessionError, run_logits, session

MODEL_FILE = "specialist.onnx"
Batch = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Origin:
    """Where a specialist was opened from, so that another process can open it again."""

    directory: str
    threads: int
    provider: str
    sha256: str  # of the graph: a cache that goes by this never serves another model's answers


@dataclass(frozen=True)
class Specialist:
    """An open session with the preprocessing and the label names that belong to it."""

    open_session: ort.InferenceSession
    preprocess: ImagePreprocess | TextPreprocess
    labels: tuple[str, ...]
    origin: Origin | None = None

    @classmethod
    def load(cls, directory: Path, threads: int = 1, provider: str = "cpu") -> Specialist:
        """Open a folder with specialist.onnx, preprocess.json and, for text, tokenizer.json.

        Warns (`exports.hosts.HostWarning`) where the folder says that it was verified on a host
        that differs from this one.

        Args:
            threads: threads of the runtime; 1 is what reports measure.
            provider: 'cpu' or 'cuda'.

        Raises:
            InputError: a file is missing or unreadable, or the provider is not there.
        """
        directory = Path(directory)
        model = directory / MODEL_FILE
        if not model.is_file():
            raise InputError(f"{model}: no such file; name a folder that winnow wrote")
        if threads < 1:
            raise InputError(f"threads {threads}: at least 1 is needed")
        preprocess, labels = load_preprocess(directory)
        try:
            opened = session(model, threads, provider)
        except SessionError as problem:
            raise InputError(str(problem)) from None
        width = opened.get_outputs()[0].shape[-1]
        if isinstance(width, int) and width != len(labels):
            raise InputError(
                f"{directory}: {MODEL_FILE} has {width} outputs and preprocess.json "
                f"{len(labels)} labels; the files of one model belong together"
            )
        warn_of_host(directory, provider)
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        origin = Origin(str(directory.absolute()), threads, provider, digest)
        return cls(opened, preprocess, tuple(labels), origin)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the folder's name: a session cannot be pickled."""
        if self.origin is None:
            raise TypeError("only a specialist that was loaded from a folder can be pickled")
        return _reopen, (self.origin,)

    @property
    def modality(self) -> str:
        """'text' or 'image'."""
        return "text" if isinstance(self.preprocess, TextPreprocess) else "image"

    def logits(self, raws: Iterable[Any], batch_size: int = 32, first_row: int = 0) -> np.ndarray:
        """Return logits, float32 (N, K), in the order of the inputs.

        Texts of equal length run together: none is padded, so that no time goes into padding and
        no text's logits into its neighbours'. What is left of neighbours is in graphs that find
        their ranges at run time (the dynamic INT8 form): those are a batch's, and the report's
        parity hop `batches` tells what that moves.

        Args:
            first_row: what an error calls the first input; for a caller that goes by chunks.

        Raises:
            InputError: a row cannot be read; it is named.
        """
        if isinstance(self.preprocess, TextPreprocess):
            return self._text_logits(self.preprocess.encode(raws, first_row), batch_size)
        rows = list(raws)
        parts = []
        for start in range(0, len(rows), batch_size):
            # Decoded a batch at a time: a large set of images must not be in memory at once.
            images = [
                self.preprocess.decode(raw, _name(raw, first_row + start + offset))
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

    def predict(
        self, raws: Iterable[Any], batch_size: int = 32, first_row: int = 0
    ) -> list[dict[str, Any]]:
        """Return {"label", "probability"} for each input: the likeliest class and its softmax."""
        logits = self.logits(raws, batch_size, first_row).astype(np.float64)
        exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities = exps / exps.sum(axis=1, keepdims=True)
        return [
            {"label": self.labels[best], "probability": float(row[best])}
            for row, best in zip(probabilities, probabilities.argmax(axis=1), strict=True)
        ]

    def as_transform(
        self,
        column: str | None = None,
        *,
        label: str = "label",
        probability: str = "probability",
        batch_size: int = 32,
    ) -> Callable[[Batch], dict[str, list[Any]]]:
        """Return a function for `datasets.Dataset.map(..., batched=True)`.

        It can be pickled, so `num_proc` works and `datasets` caches what it did by the graph's
        digest.

        Args:
            column: the column of texts or images; inferred where left out.
            label, probability: names of the two columns that it adds.
        """
        return Transform(self, column, label, probability, batch_size)


@dataclass(frozen=True)
class Transform:
    """Labels a batch of columns: {column: N values} -> {label: N names, probability: N floats}."""

    specialist: Specialist
    column: str | None
    label: str
    probability: str
    batch_size: int

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Return the two new columns.

        Raises:
            InputError: no column to read, one that is already there, or a row that is unreadable.
        """
        for name in (self.label, self.probability):
            if name in batch:
                raise InputError(
                    f"column {name!r} is already there and would be overwritten; name another "
                    "with as_transform(label=..., probability=...)"
                )
        first = {name: values[0] if len(values) else None for name, values in batch.items()}
        name = input_column(first, self.specialist.modality, self.column, "the batch")
        rows = self.specialist.predict([raw_of(value) for value in batch[name]], self.batch_size)
        return {
            self.label: [row["label"] for row in rows],
            self.probability: [row["probability"] for row in rows],
        }


def _reopen(origin: Origin) -> Specialist:
    """Open what `Specialist.__reduce__` named."""
    found = Specialist.load(Path(origin.directory), origin.threads, origin.provider)
    assert found.origin is not None
    if found.origin.sha256 != origin.sha256:
        raise InputError(f"{origin.directory}: holds another model than when it was opened")
    return found


def _name(raw: Any, row: int) -> str:
    """Return what an error calls an image of a batch."""
    return f"row {row} ({raw})" if isinstance(raw, Path) else f"row {row}"
