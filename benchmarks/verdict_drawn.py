"""What of the verdict can only be drawn: a sweep's pick, sizes that settle, drops by class."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.simulation_page import Page, percent
from exports import statistics
from exports.front import pick_smallest
from exports.paired import paired_bounds
from exports.power import decisions, examples_to_settle

LOWEST, MOST_FALSE = 0.93, 0.05


def picks(page: Page, seed: int, draws: int = 4000) -> None:
    bound, g = 0.02, 0.02
    page.say(
        "## The picked point of a sweep",
        f"Twelve points, bound {100 * bound:.0f} points, gained {g:.0%}, {draws} draws. *false "
        "pick*: share of sweeps whose pick truly drops more than the bound. *rising*: true drops "
        "of 0 to 5.5 points in steps of half a point; *plateau*: 0 to 1.5, then eight points just "
        "above the bound. *shared*: all points err on the same examples. *any*: the most "
        "compressed point that passes, without a fixed order.",
    )
    random = np.random.default_rng(seed)
    shapes = {
        "rising": np.arange(12) * 0.005,
        "plateau": np.r_[np.arange(4) * 0.005, np.full(8, bound + 1e-9)],
    }
    worst = 0.0

    def rows() -> Iterator[Sequence[str]]:
        nonlocal worst
        for shape, drops in shapes.items():
            for n in (200, 1000, 5000):
                for shared in (True, False):
                    c = random.binomial(n, g, (draws, 1 if shared else 12))
                    if shared:
                        steps = np.diff(drops + g, prepend=0)
                        parts = np.c_[np.tile(steps / (1 - g), (1, 1)), 0.0]
                        parts[0, -1] = 1 - parts[0, :-1].sum()
                        b = random.multinomial(n - c[:, 0], parts[0])[:, :-1].cumsum(axis=1)
                        c = np.repeat(c, 12, axis=1)
                    else:
                        b = random.binomial(n - c, (drops + g) / (1 - g))
                    passes = b <= decisions(n, np.arange(c.max() + 1), bound)[0][c]
                    false, loose, none = 0, 0, 0
                    for row in passes:
                        points = [
                            {"point": j, "order": j, "ms": -j, "drop_ci": (0, -1.0 if ok else 1.0)}
                            for j, ok in enumerate(row)
                        ]
                        at, _ = pick_smallest(points, bound, by="ms")
                        none += at is None
                        false += at is not None and drops[at] > bound
                        loose += bool(row.any()) and drops[np.flatnonzero(row)[-1]] > bound
                    worst = max(worst, false / draws)
                    yield (
                        shape,
                        f"{n}",
                        "shared" if shared else "independent",
                        percent(false / draws),
                        percent(loose / draws),
                        percent(none / draws),
                    )

    page.table(["drops", "n", "errors", "false pick", "with *any*", "nothing picked"], rows())
    page.must(
        f"at most 5 % of sweeps pick a point that is too bad (worst {percent(worst)} %)",
        worst <= MOST_FALSE,
    )


def settled(page: Page, seed: int, draws: int = 2000) -> None:
    page.say(
        "## How many more examples would settle it",
        f"Inconclusive runs: the size that is told, and how many of {draws} test sets of that "
        "size, drawn at the observed rates, then pass or fail. Asked: 80 %. With hardly a "
        "discordant pair the chance jumps with the size, and the first size above 80 % is told.",
    )
    random, off, least = np.random.default_rng(seed), 0.0, 1.0

    def rows() -> Iterator[Sequence[str]]:
        nonlocal off, least
        for lost, gained, n, bound in (
            (0, 0, 50, 0.02),
            (1, 0, 200, 0.02),
            (6, 6, 600, 0.01),
            (8, 4, 300, 0.02),
            (25, 20, 450, 0.02),
            (20, 8, 300, 0.02),
            (30, 20, 600, 0.01),
        ):
            told = examples_to_settle(lost, gained, n, bound)
            assert told is not None
            size, p, q = told["n"], lost / n, gained / n
            counts = random.multinomial(size, [p, q, 1 - p - q], draws)[:, :2]
            unique, times = np.unique(counts, axis=0, return_counts=True)
            share = 0
            for (b, c), seen in zip(unique.tolist(), times.tolist(), strict=True):
                low, high, _ = paired_bounds(b, c, size)
                share += seen * (high <= bound or low > bound)
            least = min(least, share / draws)
            if lost + gained >= 10:
                off = max(off, abs(share / draws - 0.8))
            yield (
                f"{lost}",
                f"{gained}",
                f"{n}",
                f"{100 * bound:g}",
                f"{size:,}",
                percent(share / draws),
            )

    page.table(["lost", "gained", "n", "bound, points", "told", "settled"], rows())
    page.must(
        "settled in about 80 % or more, within 3 points from ten discordant pairs on (off by "
        f"{percent(off)}, least {percent(least)} %)",
        off <= 0.03 and least >= 0.77,
    )


def classes(page: Page, seed: int, draws: int = 300) -> None:
    page.say(
        "## Drops by class",
        f"{draws} draws, gained 3 % in every class. *any missed*: at least one of the simultaneous "
        "95 % intervals misses its class's drop; *any called worse*: at least one class that is "
        "not worse is called so. Small classes have few outcomes, so both are rarer still.",
    )
    random, most = np.random.default_rng(seed), (0.0, 0.0)
    kept = statistics.paired_bounds
    statistics.paired_bounds = functools.cache(kept)

    def rows() -> Iterator[Sequence[str]]:
        nonlocal most
        for count, n in ((5, 30), (5, 200), (20, 30), (20, 100), (100, 10), (100, 50)):
            for drop in (0.0, 0.05):
                missed = called = 0
                # with a drop, only every other class is worse: the others may not be called so
                drops = np.where(np.arange(count) % 2, drop, 0.0)
                labels = np.repeat(np.arange(count), n)
                truth = drops[labels]
                for _ in range(draws):
                    u = random.random(count * n)
                    lost, gained = u < truth + 0.03, u > 1 - 0.03
                    found, _ = statistics.per_class_drops(
                        labels, ~gained, ~lost, [str(k) for k in range(count)]
                    )
                    missed += any(
                        not row["drop_ci"][0] <= d <= row["drop_ci"][1]
                        for row, d in zip(found, drops, strict=True)
                    )
                    called += any(
                        row["worse"] for row, d in zip(found, drops, strict=True) if not d
                    )
                most = max(most[0], missed / draws), max(most[1], called / draws)
                yield (
                    f"{count}",
                    f"{n}",
                    f"{100 * drop:.0f}",
                    percent(missed / draws),
                    percent(called / draws),
                )

    page.table(
        ["classes", "n each", "drop of every other", "any missed", "any called worse"], rows()
    )
    statistics.paired_bounds = kept
    noise = 2 * np.sqrt(0.05 * 0.95 / draws)
    page.must(
        f"a class is wrongly called worse in at most 5 % (worst {percent(most[1])} %)",
        most[1] <= 0.05 + noise,
    )
    page.must(
        f"all intervals hold at once in 93 % or more (worst {percent(1 - most[0])} %)",
        1 - most[0] >= LOWEST - noise,
    )
