"""Prefect's edge: the recipe, the artifacts between stages, and one module a stage.

Importing this package sets four environment defaults, because the libraries it wires together read
them while *they* are imported: nothing here may contact a network unless a user names a hub.
A variable that is already set is left as it is.
"""

from __future__ import annotations

import os

_STAY_LOCAL = {
    "DO_NOT_TRACK": "1",  # Prefect's and others' usage statistics
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _name, _value in _STAY_LOCAL.items():
    os.environ.setdefault(_name, _value)
