"""RESULTS.md is what its generator writes, and advice says no more than the rows support."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    results_page,
    study_combining,
    study_interplay,
    study_methods,
    study_taco,
)
from benchmarks.studies import command, provenance, scoring, tables
from benchmarks.studies.taco_tables import LADDER, teacher_table, where, within_table
from benchmarks.study_taco import row_of

MODELS = {"a": ("x", "y"), "b": ("x", "y")}


def test_the_page_is_what_the_generator_writes() -> None:
    assert results_page.PAGE.read_text() == results_page.page(), (
        "run python benchmarks/results_page.py"
    )


def result(block: str, model: str, task: str, seed: int, **values: Any) -> dict[str, Any]:
    plain = {
        "id": f"{block}/{model}/{task}/s{seed}/{sorted(values.items())}",
        "block": block,
        "model": model,
        "task": task,
        "seed": seed,
        "shots": 16,
        "pool": False,
        "calibration": "task",
        "allocation": "uniform",
        "schedule": "bare",
        "sparsity": 0.9,
        "accuracy": 0.8,
        "drop": 0.01,
        "nonzero_ratio": 10.0,
        "teacher": 0.81,
        "bytes": 10_000_000,
        "device": "none",
        "commit": "c",
        "machine": {"processor": "p", "cores": 1, "torch": "t", "onnxruntime": "o"},
    }
    return {**plain, **values}


def calibrated(gain: float) -> list[dict[str, Any]]:
    """Twelve pairs whose task-aware side is `gain` better, with a spread of a point."""
    found = []
    for model, tasks in MODELS.items():
        for task in tasks:
            for seed in range(3):
                spread = 0.01 * (seed - 1) + 0.002 * (task == "x")
                for kind, more in (("task", gain + spread), ("generic", 0.0)):
                    found.append(
                        result(
                            "calibration", model, task, seed, calibration=kind, accuracy=0.7 + more
                        )
                    )
    return found


@pytest.mark.parametrize(
    ("gain", "word"),
    [(0.05, "Calibrate on the task's own inputs"), (-0.05, "Generic inputs"), (0.0, "not told")],
)
def test_advice_follows_the_interval(gain: float, word: str) -> None:
    (sentence,) = results_page.advice({"taco": calibrated(gain)})
    assert word in sentence
    assert "taco/calibration/*" in sentence and "12 pairs" in sentence


def test_nothing_is_advised_without_rows_or_from_failures() -> None:
    assert results_page.advice({}) == []
    failed = [{**row, "failed": "x"} for row in calibrated(0.05)]
    assert results_page.advice({"taco": failed}) == []
    assert results_page.advice({"taco": calibrated(0.05)[:4]}) == [], "two pairs are too few"


def frontier(*drops: tuple[float, ...], model: str = "a") -> list[dict[str, Any]]:
    """Drops of the ladder with the pool, a tuple of seeds a task."""
    return [
        result(
            "frontier-pool", model, f"t{task}", seed, drop=drop, pool=True, schedule="ladder",
            teacher=0.7 + 0.1 * seed,
        )
        for task, seeds in enumerate(drops)
        for seed, drop in enumerate(seeds)
    ]  # fmt: skip


def test_a_budget_is_advised_only_where_both_its_intervals_hold() -> None:
    alike = (0.004, 0.006, 0.005)
    (said,) = results_page.advice({"taco": frontier(alike, alike)})
    assert "may lose 90% of its prunable weights and stay" in said and "6 runs; over tasks" in said
    assert results_page.advice({"taco": frontier((0.0, 0.04, 0.01), (0.0, 0.04, 0.01))}) == []
    assert results_page.advice({"taco": frontier(alike)}) == [], "one task tells of no other"
    # its runs lie together, its tasks do not
    assert results_page.advice({"taco": frontier((0.0,) * 9, (0.012,) * 9)}) == []
    (said,) = results_page.advice({"taco": frontier(alike, alike, model=study_interplay.MINILM)})
    assert "its embeddings left as they are" in said


@pytest.mark.parametrize(
    ("drops", "word"),
    [
        (((0.004, 0.006), (0.005, 0.005)), "within 2"),
        (((0.0,) * 9, (0.012,) * 9), "mean within 2"),
        (((0.01, 0.01),), "mean within 2"),
        (((0.03, 0.03), (0.03, 0.03)), "beyond 2"),
    ],
)
def test_within_two_points_is_said_of_both_intervals(
    drops: tuple[tuple[float, ...], ...], word: str
) -> None:
    line = within_table(frontier(*drops, model=study_interplay.DEIT)).splitlines()[-1]
    cell = line.split(" | ")[-2]
    assert cell.endswith(f"one task {word}" if len(drops) == 1 else f"] (2) {word}")


def test_teachers_are_told_with_their_range() -> None:
    rows = [{**row, "task": "sst2"} for row in frontier((0.0, 0.0), model=study_interplay.MINILM)]
    told = teacher_table(rows).splitlines()[-1]
    assert told == "| all-MiniLM-L6-v2 | sst2 | 16 | 0.750 (0.700 to 0.800; 2) |"


def test_tables_show_rows_and_failures() -> None:
    rows = calibrated(0.05)
    failed = {**rows[0], "id": "gone", "ids": ["gone/1"], "failed": "OutOfMemoryError: 80 GiB"}
    text = study_taco.table([*rows, failed])
    assert "Failed: `gone`: OutOfMemoryError: 80 GiB" in text
    assert "task-aware minus generic calibration, 90%, no recovery | 5.10" in text


def test_one_shot_gets_the_training_of_the_whole_ladder() -> None:
    ladder = row_of("x", "m", "vehicles", 0, to=0.9)["recipe"]["distill"]
    leap = row_of("x", "m", "vehicles", 0, to=0.9, schedule="one-shot")["recipe"]["distill"]

    def steps(distill: dict[str, Any]) -> int:  # as `compression.ladder.recovery_at`
        return sum(round(distill["steps"] * 0.5 / (1 - rung)) for rung in distill["rungs"])

    assert leap["rungs"] == [0.9] and ladder["rungs"] == list(LADDER[:3])
    assert abs(steps(leap) - steps(ladder)) <= 5


def test_intervals_and_pairs() -> None:
    found = tables.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.302652729911275 / 3**0.5)
    assert tables.interval([1.0]).low == -float("inf")
    rows = calibrated(0.05)
    pairs = tables.paired(rows, "calibration", "task", "generic", over=("model", "task", "seed"))
    assert len(pairs) == 12
    assert sum(pairs.values()) / 12 == pytest.approx(0.051)
    assert tables.clustered(pairs).n == 4
    assert len(where(rows, calibration=("task", "generic"), seed=0)) == 8


def test_answers_are_compared_with_the_teachers() -> None:
    import numpy as np

    dense = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
    ours = np.log(np.array([[0.5, 0.5], [0.6, 0.4], [0.3, 0.7]]))
    found = scoring.compared(dense, ours, np.array([0, 1, 1]))
    assert found["teacher"] == pytest.approx(2 / 3) and found["worse"] == found["better"] == 1
    wanted = np.mean(
        [
            0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5),
            0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(0.8 / 0.4),
            0.6 * np.log(0.6 / 0.3) + 0.4 * np.log(0.4 / 0.7),
        ]
    )
    assert found["kl"] == pytest.approx(wanted)
    assert found["cross_entropy"] == pytest.approx(-np.log(0.5 * 0.4 * 0.7) / 3)


def test_a_failure_that_was_mended_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    failed = {"id": "a/to-0.9", "ids": ["a/0.5", "a/0.9"], "failed": "x"}
    path.write_text(json.dumps(failed) + "\n" + json.dumps({"id": "a/0.5"}) + "\n")
    assert [row["id"] for row in tables.read([path])] == ["a/to-0.9", "a/0.5"]
    with path.open("a") as out:
        out.write(json.dumps({"id": "a/0.9"}) + "\n")
    assert [row["id"] for row in tables.read([path])] == ["a/0.5", "a/0.9"]


def test_marginal_values_of_an_additive_design_are_its_effects() -> None:
    gains = {"prune": -0.04, "distil": 0.03, "quantize": -0.01}
    rows = []
    for task in ("x", "y"):
        for seed in range(2):
            for cell in study_combining.CELLS:
                on = dict(zip(study_combining.FACTORS, cell, strict=True))
                accuracy = 0.8 + sum(gains[name] for name in gains if on[name]) + 0.01 * seed
                rows.append(result("90%", "m", task, seed, **on, accuracy=accuracy))
    whole = study_combining.designs(rows)
    for factor, gain in gains.items():
        every, by_task = study_combining.marginal(whole, "90%", factor, None)
        assert every.mean == pytest.approx(100 * gain) and (every.n, by_task.n) == (4, 2)


def test_the_joint_error_is_held_against_the_threshold() -> None:
    kl = {
        "dense": 0.0,
        "sparse": 0.3,
        "quantized": 0.1,
        "pruned-first": 0.5,
        "quantized-first": 0.35,
    }
    corners = {name: {"kl": value} for name, value in kl.items()}
    assert study_interplay.excess(corners) == pytest.approx(0.1)
    assert study_interplay.excess(corners, "quantized-first") == pytest.approx(-0.05)


def test_the_interplay_is_told_over_seeds_and_over_models() -> None:
    def corners(model: str, seed: int, joint: float, other: float) -> list[dict[str, Any]]:
        kl = {
            "dense": 0.0, "sparse": 0.3, "quantized": 0.1,
            "pruned-first": 0.4 + joint, "quantized-first": 0.4 + joint + other,
        }  # fmt: skip
        return [
            result(
                "tuned", model, "x", seed, kind="75%", form="int8", corner=name, kl=value,
                accuracy=0.9 - 0.1 * value, id=f"{model}/{seed}/{name}",
            )
            for name, value in kl.items()
        ]  # fmt: skip

    one, other = study_interplay.DEIT, study_interplay.MINILM
    rows = [row for s in range(3) for row in corners(one, s, 0.1 + 0.001 * s, 0.05 * (s - 1))]
    alone = study_interplay.table(rows).splitlines()[-1].split(" | ")
    # joint error: above the threshold in every seed; order: now one way, now the other
    assert alone[1] == one and alone[-3] == "+0.1010 [+0.0985, +0.1035] (3) breaks"
    assert alone[-2].startswith("+0.0000 [-0.1242, ") and "matters" not in alone[-2]
    rows += [row for s in range(3) for row in corners(other, s, -0.1, 0.2)]
    _, second, whole = study_interplay.table(rows).splitlines()[-3:]
    assert "+0.2000 [+0.2000, +0.2000] (3) matters" in second and "breaks" not in second
    assert whole.split(" | ")[1] == "all" and whole.count("(2)") == 3


def joined(
    block: str, kind: str, gain: float, above: float, models: tuple[str, ...] = ("a", "b")
) -> list[dict[str, Any]]:
    """Five corners of two seeds a model: pruning first is `gain` better, `above` the threshold."""
    return [
        result(
            block, model, "x", seed, kind=kind, form="int8", corner=corner,
            accuracy=0.8 + (gain + 0.001 * seed) * (corner == "pruned-first"),
            kl=(above + 0.0001 * seed) * (corner == "pruned-first"),
        )
        for model in models
        for seed in range(2)
        for corner in study_interplay.CORNERS
    ]  # fmt: skip


def test_order_and_harm_are_told_of_one_setting_at_a_time() -> None:
    late = "zeros that come after rounding, with nothing solved again,"
    rows = [*joined("untuned", "75%", 0.05, 0.01), *joined("tuned", "half", -0.05, -0.01)]
    tuned, untuned, harm = results_page.advice({"interplay": rows})
    assert tuned.startswith("At equal fine-tuning, quantize first, then prune (half the structure")
    assert f"{late} cost accuracy" in untuned and "order" not in untuned
    assert "(75% zeros, int8)" in untuned and "`interplay/untuned/*/75%-int8/*`" in untuned
    assert harm.startswith("75% zeros and int8 harm each other") and "nats" in harm
    # one model's seeds are alike, whatever their own interval says
    assert results_page.advice({"interplay": joined("untuned", "75%", 0.05, 0.01, ("a",))}) == []
    apart = [*joined("tuned", "90%", 0.2, 0.1, ("a",)), *joined("tuned", "90%", 0.01, 0.01, ("b",))]
    (undecided,) = results_page.advice({"interplay": apart})
    assert "not told apart (90% zeros, int8)" in undecided


@pytest.mark.parametrize(
    ("gain", "said"),
    [(0.05, "norms beats full"), (-0.05, "full beats norms"), (0.0, "not told apart")],
)
def test_a_method_is_compared_with_the_default_of_its_block(gain: float, said: str) -> None:
    rows = [
        result(
            "trained", model, "x", seed, setting="90%", alternative=name,
            accuracy=0.7 + more + 0.01 * (seed - 1) * (name == "norms"),
        )
        for model in ("a", "b")
        for seed in range(3)
        for name, more in (("full", 0.0), ("norms", gain + 0.001 * (model == "a")))
    ]  # fmt: skip
    (sentence,) = results_page.advice({"methods": rows})
    assert said in sentence and "(90%)" in sentence and "MB" not in sentence
    assert study_methods.against(rows[1::2], {("a", 0): rows[0]}).keys() == {("a", 0)}


def test_accuracies_at_unequal_sizes_are_told_with_them() -> None:
    rows = [
        result(
            "peers", model, "x", seed, method=method, accuracy=0.7 + 0.001 * seed, bytes=size
        )
        for model in ("a", "b")
        for seed in range(2)
        for method, size in (("ours-int8", 14_200_000), ("onnxruntime-static", 12_900_000))
    ]  # fmt: skip
    (sentence,) = results_page.advice({"peers": rows})
    assert "], 2, at 14.2 against 12.9 MB (`peers/*/ours-int8`" in sentence
    alike = [{**row, "bytes": 13_000_000} for row in rows]
    assert "MB" not in results_page.advice({"peers": alike})[0]


def test_a_row_holds_the_commit_that_ran_it_and_the_one_that_planned_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "taco/x", "ids": ["taco/x"], "seed": 0}
    plan = {"commit": "then", "command": "benchmarks/study_taco.py", "rows": [row]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(command, "run_pool", lambda rows, *_, **__: ran.extend(rows))
    monkeypatch.setattr(command, "commit", lambda: "now")
    monkeypatch.setenv("WINNOW_HOME", "")  # `run` sets it
    words = ["--home", str(tmp_path), "--generalists", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["x", "run", *words, "--out", str(tmp_path / "out.jsonl")])
    command.main(study_taco.STUDY)
    assert (ran[0]["facts"]["commit"], ran[0]["facts"]["planned"]) == ("now", "then")
    copy = {"commit": provenance.UNKNOWN, "planned": "then"}
    assert provenance.commit_of(copy) == "unknown (planned at then)"
    assert provenance.commit_of({"commit": "now", "planned": "then"}) == "now"


def test_results_that_are_not_there_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "table", "nowhere.jsonl"])
    with pytest.raises(SystemExit) as ended:
        command.main(study_taco.STUDY)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "taco: no file of results at nowhere.jsonl\n"
