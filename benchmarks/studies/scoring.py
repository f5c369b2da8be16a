"""From a model to a result: export, the whole test set in ONNX Runtime, the teacher beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.studies.grid import Row

if TYPE_CHECKING:
    import numpy as np

    from tasks.artifacts import Artifact
    from tasks.config import Recipe


def begin(row: Row, recipe: Recipe) -> tuple[Artifact, Artifact, Artifact]:
    """Data, generalist and teacher of a row; made once whoever asks first."""
    from tasks.load import load
    from tasks.prepare import prepare
    from tasks.teach import teach

    data = prepare.compute(recipe)
    generalist = load.compute(recipe)
    return data, generalist, teach.compute(recipe, data, generalist)


def job_of(
    row: Row, recipe: Recipe, data: Artifact, teacher: Artifact, model: Artifact, **facts: Any
) -> Row:
    """What a scorer needs; facts become columns of the result."""
    names = {key: value for key, value in row.items() if key not in ("recipe", "also", "ids")}
    return {
        **names,
        **facts,
        "recipe": recipe.model_dump(mode="json"),
        "data": data.model_dump(),
        "teacher_model": teacher.model_dump(),
        "student_model": model.model_dump(),
    }


def score(job: Row) -> Row:
    """Export, run on the whole test set in ONNX Runtime, compare with the teacher's answers."""
    if "failed" in job:
        return job
    import numpy as np

    from exports.census import census
    from tasks.artifacts import Artifact
    from tasks.config import Recipe
    from tasks.export import export
    from tasks.splits import load_split

    recipe = Recipe.model_validate(job.pop("recipe"))
    data = Artifact.model_validate(job.pop("data"))
    test = load_split(data.folder / "test.parquet")
    labels = np.array(test.labels)
    teacher, student = (
        Artifact.model_validate(job.pop(f"{name}_model")) for name in ("teacher", "student")
    )
    whole = export.compute(recipe, data, teacher)
    dense = answers(whole, test.inputs)
    graph = export.compute(recipe, data, student)
    found = answers(graph, test.inputs)
    counts = census(graph.folder / "model.onnx", graph.json_file("prunable.json"))
    facts = {**_sizes(counts), "graph": graph.path, "teacher_graph": whole.path}
    return {**job, **compared(dense, found, labels), **facts}


def _sizes(counts: dict[str, int]) -> Row:
    return {
        "bytes": counts["bytes"],
        "nonzero": counts["prunable_nonzero"],
        "nonzero_ratio": counts["prunable"] / max(1, counts["prunable_nonzero"]),
    }


def answers(graph: Artifact, inputs: Sequence[Any]) -> np.ndarray:
    """Logits of an exported graph on the test set; kept, since a teacher is asked often."""
    import numpy as np

    from tasks.home import store
    from tasks.measure import logits_of

    kept = store() / "answers" / f"{graph.sha256}.npy"
    if kept.exists():
        return np.asarray(np.load(kept))
    found = logits_of({"model": graph.folder}, inputs)["model"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.stem}.{os.getpid()}.npy")
    np.save(part, found)
    os.replace(part, kept)
    return found


def compared(dense: np.ndarray, found: np.ndarray, labels: np.ndarray) -> Row:
    """Accuracies, drop, paired counts, cross-entropy and divergence from the teacher, in nats."""
    import numpy as np

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    ours, theirs = log_softmax(found), log_softmax(dense)
    right, right_dense = found.argmax(1) == labels, dense.argmax(1) == labels
    rows = np.arange(len(labels))
    return {
        "n": len(labels),
        "teacher": float(right_dense.mean()),
        "accuracy": float(right.mean()),
        "drop": float(right_dense.mean() - right.mean()),
        "worse": int((right_dense & ~right).sum()),
        "better": int((right & ~right_dense).sum()),
        "cross_entropy": float(-ours[rows, labels].mean()),
        "teacher_cross_entropy": float(-theirs[rows, labels].mean()),
        "kl": float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()),
    }
