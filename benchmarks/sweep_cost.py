"""What a whole sweep costs against one run of the same recipe, both from nothing.

Runs the flows' own links without Prefect or MLflow, so that it also runs on a GPU machine. Each of
the two has an empty store of its own; the sum of the stages' seconds is compared.

    python benchmarks/sweep_cost.py RECIPE [--set A.B=VALUE]... --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def timed(home: Path, work: Any) -> tuple[Any, float, dict[str, float]]:
    """Run in an empty store: the result, wall seconds, and seconds by stage."""
    from tasks.stage import recording, without_prefect

    shutil.rmtree(home, ignore_errors=True)
    os.environ["WINNOW_HOME"] = str(home)
    started = time.perf_counter()
    with recording() as stages, without_prefect():
        result = work()
    seconds = time.perf_counter() - started
    return result, seconds, {each.title: each.artifact.seconds for each in stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    from exports.plots import sweep_pictures
    from exports.runtime import host_profile
    from exports.sweep_card import sweep_markdown
    from flows.chain import begin, make
    from flows.family import make_family
    from tasks.batches import device
    from tasks.recipes import load_recipe

    recipe = load_recipe(asked.recipe, asked.set)
    asked.out.mkdir(parents=True, exist_ok=True)
    made, alone, stages = timed(asked.out / "home-run", lambda: make(recipe, begin(recipe)))
    (family, compared), whole, parts = timed(
        asked.out / "home-sweep", lambda: make_family(recipe, begin(recipe))
    )
    report = compared.json_file("sweep.json")
    for name, content in sweep_pictures(report).items():
        (asked.out / name).write_bytes(content)
    (asked.out / "sweep.md").write_text(sweep_markdown(report), encoding="utf-8")
    host = host_profile()
    told = {
        "recipe": recipe.name,
        "points": len(report["points"]),
        "run_seconds": alone,
        "sweep_seconds": whole,
        "ratio": whole / alone,
        "host": f"{host['cpu']}, {host['usable_cores']} cores, training on {device().type}",
        "run_stages": stages,
        "sweep_stages": parts,
        "run": made.verified.metrics,
        "sweep": report,
        "ways": {f"{speed:g}": way for speed, way in family.ways.items()},
    }
    (asked.out / "cost.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{told['host']}, seed {recipe.task.seed}")
    print(f"one run {alone:.0f} s, a sweep of {told['points']} points {whole:.0f} s: ", end="")
    print(f"{told['ratio']:.2f} runs")
    print(report["picked_why"])
    for row in report["points"]:
        low, high = row["drop_ci"]
        print(
            f"  {row['point']:<14} {row['ratio']:5.2f}x  {row['bytes'] / 1e6:6.1f} MB  "
            f"drop {100 * row['drop']:5.1f} points [{100 * low:.1f}, {100 * high:.1f}]  "
            f"{row['status']}{'  <- picked' if row['point'] == report['picked'] else ''}"
        )


if __name__ == "__main__":
    main()
