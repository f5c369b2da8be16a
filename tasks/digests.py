"""SHA-256 of content: of files, of folders, of what a recipe names as a source."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
MANIFEST = "artifact.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content (hex)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the sorted relative names and contents of a folder, its manifest left out."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            total.update(f"{name}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def source_digest(name: str) -> str:
    """A digest of what a source holds; a hub's name, or the digits', stands for itself."""
    path = Path(name)
    if path.is_dir():
        return folder_digest(path)
    if not path.is_file():
        return f"name:{name}"
    total = hashlib.sha256(f"{path.suffix} {file_digest(path)}".encode())
    if path.suffix in (".csv", ".tsv", ".json", ".jsonl"):  # may name image files: theirs count too
        for token in re.split(r"[\"',\t\r\n]+", path.read_text(encoding="utf-8", errors="replace")):
            image = path.parent / token.strip()
            if token.strip().lower().endswith(IMAGE_SUFFIXES) and image.is_file():
                total.update(file_digest(image).encode())
    return total.hexdigest()
