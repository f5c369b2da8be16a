"""Prune then quantize against quantize then prune, with training held equal, and the threshold.

After Harma et al., "Effective Interplay between Sparsity and Quantization" (ICLR 2025, arXiv
2405.20935). Every row makes five corners of one (model, task, seed): the teacher, only pruned,
only quantized, pruned then quantized, quantized then pruned. Without fine-tuning, what is quantized
first keeps its integers and gets the zeros that the same solver finds on the quantized weights
(compensation would leave the grid). With fine-tuning, every corner gets equally many distillation
steps before its last rounding and keeps its best average by held-out divergence, so that order is
not confounded with training. The dense corner begins where that divergence is 0 and so stays what
it was: the tuned threshold is that of a tuned sparse model and the teacher rounded.
Structured removal leaves half of the heads, neurons or channels everywhere; its weights are rounded
again after the removal in either order.

    python benchmarks/study_interplay.py plan|pack|run|table ...  (benchmarks/studies/command.py)

The error E is the divergence from the teacher on the test set, in nats (and the accuracy beside
it): joint error above E_orth = E(sparse) + E(quantized) - E(dense) means that the two harm each
other (`compression.interplay`). Rows in order: of each model's first task, without fine-tuning
INT8 at 75 %, structured, 90 % and 50 %, then INT4 of the two transformers, then all of it with
fine-tuning; then the same of the other tasks.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.config import Recipe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.studies.command import Study, main
from benchmarks.studies.grid import DEIT, MINILM, TASKS, Row, grid, recipe_of
from benchmarks.studies.models import masked_on_grid, narrowed, recovered
from benchmarks.studies.scoring import begin, job_of, score
from benchmarks.studies.tables import Interval, clustered, interval, markdown, told_of

STEPS = 300
KINDS = (
    ("75%", "int8"),
    ("half", "int8"),
    ("90%", "int8"),
    ("50%", "int8"),
    ("75%", "int4"),
    ("half", "int4"),
    ("90%", "int4"),
)
CORNERS = ("dense", "sparse", "quantized", "pruned-first", "quantized-first")
LINEAR = (DEIT, MINILM)  # 4 bits are for Linear layers


def rows(args: argparse.Namespace) -> list[Row]:
    """All rows, most wanted first."""
    found = []
    for first in (True, False):
        for steps in (0, STEPS if args.steps is None else args.steps):
            for kind, form in KINDS:
                for model, task, seed in grid(args):
                    if (task == TASKS[model][0]) == first and (form == "int8" or model in LINEAR):
                        found.append(row_of(model, task, seed, kind, form, steps))
    return found


def row_of(model: str, task: str, seed: int, kind: str, form: str, steps: int) -> Row:
    """One row; `kind` is a share of zeros, or half of the structure."""
    block = "tuned" if steps else "untuned"
    name = f"interplay/{block}/{model}/{task}/s{seed}/{kind}-{form}"
    sparsity = 0.0 if kind == "half" else float(kind.rstrip("%")) / 100
    quantize = {
        "format": form,
        # one form of graph on every host, and no layer left float: errors are to be seen
        "route": "fused" if model in LINEAR else "static",
        "activation": "uint8",
        "keep_float": {"samples": 0},
        "calibration_report": 0,
    }
    # a rung takes steps / (2 (1 - sparsity))
    distill = {"steps": round(2 * steps * (1 - sparsity)), "labelled_share": 0.5}
    prune = {"sparsity": sparsity}
    if sparsity:
        distill["rungs"] = [sparsity]  # type: ignore[assignment]
    recipe = recipe_of(
        model, task, seed=seed, pool=True, quantize=quantize, distill=distill, prune=prune
    )
    return {
        "id": name,
        "name": name,
        "ids": [f"{name}/{corner}" for corner in CORNERS],
        "block": block,
        "model": model,
        "task": task,
        "seed": seed,
        "kind": kind,
        "form": form,
        "steps": steps,
        "recipe": recipe,
    }


def work(row: Row, recipe: Recipe, jobs: Any) -> None:
    """The five corners of one row."""
    from tasks.prune import prune
    from tasks.quantize import quantize

    data, _, teacher = begin(row, recipe)
    steps = row["steps"]

    def smaller(student: Any) -> Any:
        """Pruned, with this row's recovery."""
        if row["kind"] == "half":
            cut = narrowed(recipe, data, student, 0.5)
            return recovered(recipe, data, teacher, cut, steps)
        return prune.compute(recipe.at_rung(recipe.sparsity), data, teacher, student)

    def put(corner: str, model: Any) -> None:
        facts = {"id": f"{row['name']}/{corner}", "corner": corner}
        jobs.put(job_of(row, recipe, data, teacher, model, **facts))

    dense = recovered(recipe, data, teacher, teacher, steps)
    put("dense", dense)
    sparse = smaller(teacher)
    put("sparse", sparse)
    put("quantized", quantize.compute(recipe, data, dense))
    put("pruned-first", quantize.compute(recipe, data, sparse))
    rounded = quantize.compute(recipe, data, teacher)
    second = smaller(rounded)
    if steps or row["kind"] == "half":  # training, or compensation, left the grid
        put("quantized-first", quantize.compute(recipe, data, second))
    else:
        put("quantized-first", masked_on_grid(rounded, second))


def table(found: list[Row]) -> str:
    """The study as Markdown."""
    fine = [row for row in found if "failed" not in row]
    cells: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in fine:
        key = (row["block"], row["model"], row["kind"], row["form"], row["task"], row["seed"])
        cells[key][row["corner"]] = row
    grouped: dict[tuple[Any, ...], list[dict[str, Row]]] = defaultdict(list)
    for key, corners in cells.items():
        if set(corners) == set(CORNERS):
            grouped[key[:4]].append(corners)
            grouped[key[0], "all", *key[2:4]].append(corners)
    for key in [key for key in grouped if key[1] != "all"]:
        if len(grouped[key]) == len(grouped[key[0], "all", *key[2:]]):  # one model: said already
            del grouped[key[0], "all", *key[2:]]
    lines = []
    order = [*TASKS, "all"]
    kinds = [kind for kind in KINDS]
    for key in sorted(
        grouped, key=lambda k: (k[0] == "tuned", kinds.index((k[2], k[3])), order.index(k[1]))
    ):
        lines.append((*_named(key), *_figures(grouped[key], models=key[1] == "all")))
    heads = (
        "training",
        "model",
        "removed",
        "form",
        "KL sparse",
        "KL quantized",
        "threshold",
        "KL pruned first",
        "KL quantized first",
        "pruned first above the threshold [95 %]",
        "quantized first minus pruned first, nats [95 %]",
        "accuracy, pruned first minus quantized first, points [95 %]",
    )
    parts = [told_of(found)]
    if lines:
        parts += [
            "Divergence from the teacher on the test set in nats, mean over tasks and seeds; "
            "intervals over them, of all models over models and tasks with seeds averaged. Where "
            "the first interval is above zero orthogonality breaks: the joint error is above the "
            "sum of the parts. Where the second is above zero order matters.",
            markdown(heads, lines),
        ]
    return "\n\n".join(parts)


def _named(key: tuple[Any, ...]) -> tuple[str, ...]:
    block, model, kind, form = key
    return (
        "tuned" if block == "tuned" else "none",
        model,
        "half the structure" if kind == "half" else kind,
        form,
    )


def excess(corners: dict[str, Row], joint: str = "pruned-first") -> float:
    """How far the joint divergence is above the threshold, in nats."""
    from compression.interplay import interplay

    kl = {name: -corners[name]["kl"] for name in CORNERS}  # higher is better there
    met = interplay(
        dense=kl["dense"], sparse=kl["sparse"], quantized=kl["quantized"], both=kl[joint]
    )
    return met.threshold - met.both


def _figures(items: list[dict[str, Row]], *, models: bool) -> tuple[Any, ...]:
    """Means of the corners and three differences, their intervals over models and tasks or all."""

    def mean(corner: str) -> float:
        return sum(corners[corner]["kl"] for corners in items) / len(items)

    def over(value: Callable[[dict[str, Row]], float]) -> Interval:
        at = {
            (corners["dense"]["model"], corners["dense"]["task"], corners["dense"]["seed"]): value(
                corners
            )
            for corners in items
        }
        return clustered(at) if models else interval(list(at.values()))

    def nats(found: Interval, word: str) -> str:
        if found.n < 2:
            return f"{found.mean:+.4f} ({found.n})"
        told = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] ({found.n})"
        return f"{told} {word}" if found.low > 0 else told

    def order(of: str, corners: dict[str, Row]) -> float:
        return float(corners["pruned-first"][of] - corners["quantized-first"][of])

    threshold = mean("sparse") + mean("quantized") - mean("dense")
    return (
        f"{mean('sparse'):.4f}",
        f"{mean('quantized'):.4f}",
        f"{threshold:.4f}",
        f"{mean('pruned-first'):.4f}",
        f"{mean('quantized-first'):.4f}",
        nats(over(excess), "breaks"),
        nats(over(lambda corners: -order("kl", corners)), "matters"),
        str(over(lambda corners: 100 * order("accuracy", corners))),
    )


def picture(found: list[Row], path: Path) -> None:
    """Joint divergence over the threshold, both orders; above the diagonal they harm each other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    cells: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in found:
        key = (row["block"], row["model"], row["kind"], row["form"], row["task"], row["seed"])
        cells[key][row["corner"]] = row
    figure, panels = plt.subplots(1, 2, figsize=(9, 4))
    for panel, block in zip(panels, ("untuned", "tuned"), strict=True):
        seen = [(k, c) for k, c in cells.items() if k[0] == block and set(c) == set(CORNERS)]
        for joint, mark in (("pruned-first", "o"), ("quantized-first", "x")):
            x = [c["sparse"]["kl"] + c["quantized"]["kl"] - c["dense"]["kl"] for _, c in seen]
            y = [c[joint]["kl"] for _, c in seen]
            panel.scatter(x, y, marker=mark, label=joint.replace("-", " "), alpha=0.7)
            if x:
                panel.plot([min(x), max(x)], [min(x), max(x)], color="grey", linewidth=0.8)
        panel.set(
            xlabel="threshold, nats",
            title="with training" if block == "tuned" else "without training",
        )
        if seen:
            panel.set(xscale="log", yscale="log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("joint divergence, nats")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


STUDY = Study("interplay", __doc__.splitlines()[0], rows, work, score, table, picture)

if __name__ == "__main__":
    main(STUDY)
