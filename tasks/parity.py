"""The chain of conversions from torch to every runtime, and the first node where a hop breaks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exports.departure import (
    CLOSER,
    FLOAT,
    HALF,
    INT8,
    Departure,
    Tolerance,
    first_departure,
)
from exports.half import HalfError, convert_half
from exports.onnxfile import GraphError
from exports.parity import hop, judged
from exports.preprocess import InputError, TextPreprocess, load_preprocess
from exports.runtime import SessionError, host_profile, session
from exports.specialist import Specialist
from models.checkpoint import Bundle, load_bundle
from models.spying import torch_tensors
from tasks.artifacts import Artifact
from tasks.batches import INPUTS
from tasks.config import Recipe
from tasks.fed import fed_row, settings_departure
from tasks.layout import GRAPH, SERVED, ship
from tasks.measure import logits_of
from tasks.reference import torch_logits
from tasks.splits import Split

Row = dict[str, Any]
_ROWS = 256  # of the test set, for hops that need runs of their own
_BATCH = 32  # as a user's, and as the test set was run
_FEW = 4  # examples on which a departing node is looked for
_SAME = 0.98  # of the labels, where the same numbers take another way through a runtime
_CUDA = "CUDAExecutionProvider"


def parity_chain(
    recipe: Recipe,
    test: Split,
    folders: Mapping[str, Path],
    teacher: Artifact,
    floats: Artifact,
    logits: Mapping[str, np.ndarray],
    served: Path | None = None,
) -> list[Row]:
    """Compare what is before and after every conversion, on the same examples.

    Args:
        test: the test set that is judged.
        folders: the exported 'teacher', 'pruned' (the float specialist) and 'specialist'.
        teacher, floats: the bundles that 'teacher' and 'pruned' were exported from.
        logits: (N, K) of the three on all of `test`, each fed by its own folder.
        served: the folder as shipped; left out, one is made as `winnow specialize` makes it.

    Returns:
        the report's `parity`, in the order of the conversions: what breaks one hop may show in
        later ones. See `exports.parity.judged`; hops on a part of the test set carry their "n".
    """
    chain = _Chain(recipe, test, folders, logits)
    bundle = load_bundle(teacher.folder)
    rows = [chain.fed(bundle, "teacher"), chain.traced(bundle, teacher, "teacher")]
    bundle = load_bundle(floats.folder)
    rows += [chain.compressed(), chain.fed(bundle, "pruned", "specialist")]
    if floats.sha256 != teacher.sha256:
        rows.append(chain.traced(bundle, floats, "pruned"))
    rows.append(chain.quantized())
    with tempfile.TemporaryDirectory(prefix="winnow-") as scratch:
        if served is None:
            served = Path(scratch, "served")
            served.mkdir()
            ship(folders["specialist"], served)
        rows += chain.served(served)
        rows += chain.on_cuda(Path(scratch))
    return rows


class _Chain:
    """One run's graphs with the examples that they are compared on."""

    def __init__(
        self,
        recipe: Recipe,
        test: Split,
        folders: Mapping[str, Path],
        logits: Mapping[str, np.ndarray],
    ) -> None:
        self.recipe, self.asked = recipe, recipe.verify
        self.folders, self.logits = folders, logits
        self.test, self.labels = test, np.array(test.labels)
        some = np.linspace(0, len(test) - 1, min(_ROWS, len(test)))
        self.rows = np.unique(some.round().astype(int))
        self.part = test.rows(self.rows.tolist())
        self.cores = int(host_profile()["usable_cores"])

    def fed(self, bundle: Bundle, *names: str) -> Row:
        """What training showed the model against what its exports are fed."""
        hop_name = "preprocess" if names == ("teacher",) else "preprocess specialist"
        rows = [
            fed_row(hop_name, self.recipe, self.part, bundle, self.folders[name]) for name in names
        ]
        return next((row for row in rows if row["broken"]), rows[0])

    def traced(self, bundle: Bundle, model: Artifact, name: str) -> Row:
        """Torch against the float graph; the specialist's on a part of the test set."""
        whole = name == "teacher"
        split, at = (self.test, slice(None)) if whole else (self.part, self.rows)
        before, after = torch_logits(self.recipe, split, model), self.logits[name][at]
        hop_name = "torch->onnx" if whole else "torch->onnx specialist"
        row = hop(hop_name, before, after, self.labels[at])
        limits, node = {"max_abs": self.asked.parity_max_abs}, None
        if judged(row, limits)["broken"]:
            node = self._torch_departure(bundle, name)
        return {**judged(row, limits, node=node), "n": len(split)}

    def compressed(self) -> Row:
        """What pruning changed: for the verdict to judge."""
        row = hop("onnx->pruned", self.logits["teacher"], self.logits["pruned"], self.labels)
        return {**judged(row, {}, kind="compression"), "n": len(self.test)}

    def quantized(self) -> Row:
        """Float specialist against what is served: nodes are always looked at.

        Rounding moves logits so far that a wrong scale may hide behind it.
        """
        row = hop("pruned->int8", self.logits["pruned"], self.logits["specialist"], self.labels)
        before, after = (self.folders[name] / GRAPH for name in ("pruned", "specialist"))
        limits = {"agreement": self.asked.parity_agreement}
        node = self._departure(before, after, INT8)
        if node is None and judged(row, limits)["broken"]:
            node = self._departure(before, after, CLOSER)
        return {**judged(row, limits, node=node), "n": len(self.test)}

    def served(self, served: Path) -> list[Row]:
        """Hold a served folder against the specialist's export; then one way to run it to another.

        `batches`: one input at a time against many; `threads`: one against all cores.
        """
        export, labels = self.folders["specialist"], self.labels[self.rows]
        # run again: where ranges are found at run time, a text's logits depend on its batch
        before = logits_of({"specialist": export}, self.part.inputs)["specialist"]
        limits = {"max_abs": self.asked.parity_max_abs, "agreement": _SAME}
        classes = load_preprocess(self.folders["pruned"])[1]
        node = settings_departure(export, served)
        try:
            after = _by_name(Specialist.load(served, self.cores), self.part, classes)
        except (InputError, SessionError) as problem:
            lost = hop("int8->served", before, np.full_like(before, np.nan), labels)
            why = f"parity int8->served: {problem}"
            return [{**judged(lost, limits, node=node, why=why), "n": len(labels)}]
        row = hop("int8->served", before, after, labels)
        if node is None and judged(row, limits)["broken"]:
            node = self._departure(export / GRAPH, served / SERVED[0], FLOAT)
        rows = [{**judged(row, limits, node=node), "n": len(labels)}]
        # threads, batch, least agreement: ranges found at run time are those of a batch
        ways = {"batches": (self.cores, 1, self.asked.parity_agreement)}
        if self.cores > 1:
            ways["threads"] = (1, _BATCH, _SAME)
        for name, (threads, batch, least) in ways.items():
            other = _by_name(Specialist.load(served, threads), self.part, classes, batch)
            row, limits = hop(name, other, after, labels), {"agreement": least}
            node = None
            if name == "threads" and judged(row, limits)["broken"]:
                graph = served / SERVED[0]
                node = self._departure(graph, graph, FLOAT, threads=self.cores)
            rows.append({**judged(row, limits, node=node), "n": len(labels)})
        return rows

    def on_cuda(self, scratch: Path) -> list[Row]:
        """The float specialist in half precision on the GPU, where there is one."""
        if _CUDA not in host_profile()["providers"]:
            return []
        folder, half = self.folders["pruned"], scratch / "half.onnx"
        preprocess, labels = load_preprocess(folder)
        try:
            convert_half(folder / GRAPH, half, feed=self._few())
            opened = Specialist(session(half, 1, "cuda"), preprocess, tuple(labels))
        except (HalfError, SessionError):  # a provider that is listed may lack its libraries
            return []
        before, after = self.logits["pruned"][self.rows], opened.logits(self.part.inputs)
        row = hop("cpu->cuda", before, after, self.labels[self.rows])
        node = self._departure(folder / GRAPH, half, HALF, provider="cuda")
        limits = {"agreement": self.asked.parity_agreement}
        return [{**judged(row, limits, runtime="cuda", node=node), "n": len(self.rows)}]

    def _few(self, name: str = "pruned") -> dict[str, np.ndarray]:
        """A few examples as a graph takes them; texts of one length, so that none is padded."""
        preprocess, _ = load_preprocess(self.folders[name])
        if not isinstance(preprocess, TextPreprocess):
            return preprocess(self.part.inputs[:_FEW])
        rows = preprocess.encode([str(text) for text in self.part.inputs])
        lengths = [len(row) for row in rows if len(row) > _FEW] or [len(rows[0])]
        usual = max(sorted(set(lengths)), key=lengths.count)
        return preprocess.pad([row for row in rows if len(row) == usual][:_FEW])

    def _departure(
        self, before: Path, after: Path, tolerance: Tolerance, **how: Any
    ) -> Departure | None:
        try:
            return first_departure(before, after, self._few(), tolerance=tolerance, **how)
        except (GraphError, SessionError):  # a form that cannot be looked into is not a fault
            return None

    def _torch_departure(self, bundle: Bundle, name: str) -> Departure | None:
        feed = self._few(name)
        batch = tuple(torch.from_numpy(feed[each]) for each in INPUTS[bundle.modality])
        reference = torch_tensors(bundle.model, batch)
        try:
            graph = self.folders[name] / GRAPH
            return first_departure(reference, graph, feed, tolerance=FLOAT)
        except (GraphError, SessionError):
            return None


def _by_name(
    opened: Specialist, split: Split, labels: Sequence[str], batch: int = _BATCH
) -> np.ndarray:
    """Logits (N, K) with the columns in the order of `labels`: a user reads names, not rows."""
    found = opened.logits(split.inputs, batch)
    column = {label: at for at, label in enumerate(opened.labels)}
    nothing = np.full(len(found), -np.inf, np.float32)
    return np.stack([found[:, column[x]] if x in column else nothing for x in labels], axis=1)
