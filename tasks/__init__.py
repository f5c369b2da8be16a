"""Prefect's edge: the recipe, the artifacts between stages, and one module a stage.

Importing this package sets environment defaults, because the libraries it wires together read them
while *they* are imported. A variable that is already set is left as it is.
"""

from __future__ import annotations

import os

_DEFAULTS = {
    # Threads that wait must sleep. With the usual busy waiting, two threads on two cores that
    # others use as well were several times slower than one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Nothing contacts a network unless a recipe names a hub: no usage statistics.
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A server that is away is waited for four minutes, as MLflow's client does; Prefect's own five
    # tries end after one.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
