"""Let torchvision be imported where its compiled operators do not load.

torchvision registers shape functions for ``torchvision::nms`` and ``torchvision::qnms`` on
import. Beside a torch build that its compiled library does not fit, the two operators do not
exist and the import fails, taking timm and the vision parts of transformers down with it.
Declaring the bare schemas first mends that; nothing here calls the operators themselves.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# a Library object owns its declarations, so it has to outlive the call that made them
_DECLARED: list[torch.library.Library] = []


def _load_compiled() -> None:
    """Load torchvision's compiled operators if they are there and fit this torch."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("_C*")):
            try:
                torch.ops.load_library(str(library))
            except (OSError, ImportError):
                continue  # built for another torch: the declarations below stand in


def _missing(name: str) -> bool:
    return not hasattr(torch.ops.torchvision, name)


@functools.cache
def ensure_torchvision() -> tuple[str, ...]:
    """Declare the operators that torchvision's import needs; call before timm or transformers.

    Returns the names that had to be declared (none where torchvision's own library loads).
    """
    _load_compiled()
    missing = tuple(name for name in _SCHEMAS if _missing(name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _DECLARED.append(library)
        for name in missing:
            library.define(_SCHEMAS[name])
    return missing
