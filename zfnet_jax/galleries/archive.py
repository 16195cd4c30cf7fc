"""A gallery as one file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

_EARLIEST = (1980, 1, 1, 0, 0, 0)


def zip_gallery(folder: Path) -> Path:
    """Write gallery.zip into the folder of a gallery, and return its path.

    It holds the pages in a folder `gallery`, and nothing else of the folder. Galleries
    of the same files give the same bytes. It appears complete or not at all.
    """
    pages = (x for x in (folder / "pages").rglob("*") if x.is_file())
    files = [folder / "index.html", folder / "gallery.json", *pages]
    names = {file.relative_to(folder).as_posix(): file for file in files}
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
