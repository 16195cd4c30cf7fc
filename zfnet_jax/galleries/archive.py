"""A gallery as one file."""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

_EARLIEST = (1980, 1, 1, 0, 0, 0)
_PARTS = "sanity", "live", "classes", "likeness", "compare"


def zip_gallery(folder: Path) -> Path:
    """Write gallery.zip into the folder of a gallery, and return its path.

    It holds the pages in a folder `gallery`, and nothing else of the folder: of layers
    only those in gallery.json. The same gallery gives the same bytes. It appears
    complete or not at all.
    """
    names = {x.relative_to(folder).as_posix(): x for x in _list_files(folder)}
    path, part = folder / "gallery.zip", folder / ".gallery.zip.part"
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name in sorted(names):
                entry = zipfile.ZipInfo(f"gallery/{name}", _EARLIEST)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                is_packed = name.endswith((".webp", ".png"))
                method = zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED
                archive.writestr(entry, names[name].read_bytes(), method)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _list_files(folder: Path) -> Iterator[Path]:
    outline, pages = folder / "gallery.json", folder / "pages"
    layers = json.loads(outline.read_bytes())["layers"]
    yield from (folder / "index.html", outline)
    yield from itertools.chain(pages.glob("*.css"), pages.glob("*.js"))
    for home in (
        *((folder / layer["page"]).parent for layer in layers),
        *(pages / part for part in _PARTS),
    ):
        yield from (file for file in home.rglob("*") if file.is_file())
