"""What a person sees: plain lines in a log, bars on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tasks import progress
from tasks.artifacts import Artifact
from tasks.progress import Reporter, seconds, watch, watching


def reporter(terminal: bool) -> tuple[Reporter, io.StringIO]:
    stream = io.StringIO()
    return Reporter(
        Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    ), stream


def test_a_log_gets_plain_lines_with_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    told, stream = reporter(terminal=False)
    with told.stage("prune") as callback:
        for done in range(1, 4):
            callback(done, 4, "layer")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  prune ..."
    assert lines[1] == "  prune: 1/4 layer, about 45 s left"
    assert lines[-1].startswith("+ prune: ")
    assert "\x1b" not in stream.getvalue()


def test_a_log_is_not_flooded() -> None:
    told, stream = reporter(terminal=False)
    with told.stage("prune") as callback:
        for done in range(1000):
            callback(done, 1000, "layer")
    assert len(stream.getvalue().splitlines()) == 2


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    told, stream = reporter(terminal=True)
    with told.stage("prune") as callback:
        callback(1, 4, "[layer]")  # brackets are not markup
    text = stream.getvalue()
    assert "━" in text and "\x1b[2K" in text
    assert text.rstrip().splitlines()[-1].endswith("+ prune: 0.0 s\x1b[0m")


def test_a_failing_stage_is_not_reported_as_done() -> None:
    told, stream = reporter(terminal=False)
    with pytest.raises(RuntimeError), told.stage("prune"):
        raise RuntimeError
    assert "+ prune" not in stream.getvalue()


def test_a_reused_stage_says_what_it_saved() -> None:
    told, stream = reporter(terminal=False)
    told.reused("teach", Artifact(stage="teach", path="p", sha256="s", key="k", seconds=125))
    assert stream.getvalue() == "= teach: reused (saved 2 min 5 s)\n"


def test_the_reporter_of_a_run_is_found_from_inside() -> None:
    told, _ = reporter(terminal=False)
    with watch(told):
        assert watching() is told
    assert watching() is not told


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (89, "89 s"), (185, "3 min 5 s")],
)
def test_durations_are_read_aloud(value: float, text: str) -> None:
    assert seconds(value) == text
