"""Flows: wiring only. `tasks` is imported first, for its environment defaults."""

from __future__ import annotations

import tasks

__all__ = ["tasks"]
