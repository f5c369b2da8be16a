"""Warnings of libraries that are not ours to mend."""

from __future__ import annotations

import pytest

# MLflow's, Prefect's and SQLAlchemy's own, where their servers and stores are real
QUIET = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
