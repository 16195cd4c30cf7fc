"""Files fetched once over HTTP: resumed where they stopped, and checked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zfnet_jax.files import DamagedFileError, DataNotFoundError

# Seconds until a server must have answered, and until the next bytes must come.
_ANSWER, _NEXT = 8, 30


def cache_folder() -> Path:
    """Return the user's folder for files that this package fetches."""
    import pooch

    return Path(pooch.os_cache("zfnet_jax"))


def fetch(url: str, folder: Path, hint: str = "") -> Path:
    """Return the path of a file in a folder, after fetching it if it is missing.

    A download that was interrupted continues where it stopped. One that another process
    has begun is waited for.

    Args:
        url: Address of the file; its last part is the file's name.
        folder: Where the file is kept.
        hint: What else to do without the file, for messages.

    Raises:
        DataNotFoundError: The file is missing and cannot be fetched.
    """
    import pooch

    name = url.rpartition("/")[2]
    if (folder / name).exists():
        return folder / name
    part = folder / f"{name}.part"
    downloader: Any = functools.partial(_download, part=part)
    try:
        with _wait_for_others(folder / f".{name}.lock"), _quiet(pooch.get_logger()):
            return Path(pooch.retrieve(url, None, name, folder, downloader=downloader))
    except (OSError, ValueError) as error:
        response = getattr(error, "response", None)
        status = response is not None and f"{response.status_code} {response.reason}"
        reason = status or getattr(error, "strerror", None) or "no connection"
        if part.exists():
            reason += f"; {part.stat().st_size:,} bytes are kept: run again to continue"
        raise DataNotFoundError(
            f"{name} is not in {folder} and cannot be fetched ({reason}): put {url} "
            f"there{hint}"
        ) from error


def check(path: Path, algorithm: str, digits: str) -> None:
    """Remove a file unless its digest starts with some hex digits.

    Raises:
        DamagedFileError: It does not.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    if not digest.startswith(digits):
        with contextlib.suppress(OSError):
            path.unlink()
        raise DamagedFileError(
            f"{path} is damaged and was removed: its {algorithm} starts with "
            f"{digest[:8]}, not {digits[:8]}; run again to fetch it anew"
        )


def _download(url: str, output_file: str, _pooch: object, *, part: Path) -> None:
    """Fetch a file, or the rest of one whose beginning is in `part`."""
    from tqdm import tqdm

    size = part.stat().st_size if part.exists() else 0
    response = _request(url, size)
    if response.status_code == 416:  # The part is not the beginning of this file.
        response.close()
        response = _request(url, 0)
    with response:
        response.raise_for_status()
        if response.status_code != 206:
            size = 0
        total = size + int(response.headers.get("Content-Length", 0)) or None
        bar = {"total": total, "initial": size, "unit": "B", "unit_scale": True}
        with (
            part.open("ab" if size else "wb") as file,
            tqdm(desc=part.stem, **bar) as t,
        ):
            for chunk in response.iter_content(2**20):
                file.write(chunk)
                t.update(len(chunk))
    os.replace(part, output_file)


def _request(url: str, start: int) -> Any:
    """Ask for the bytes of a file from `start`; the answer comes in seconds or never.

    Raises:
        OSError: There is no answer.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        timeout = _ANSWER, _NEXT
        try:
            answers.put(
                requests.get(url, headers=headers, stream=True, timeout=timeout)
            )
        except Exception as error:
            answers.put(error)

    # Each of a server's addresses has its own timeout, and looking them up has none.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_ANSWER)
    except queue.Empty:
        raise TimeoutError(None, f"no answer within {_ANSWER} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextlib.contextmanager
def _wait_for_others(path: Path) -> Iterator[None]:
    """Let one process at a time continue. A lock of one that was killed is gone."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Suppress pooch's advice on checksums."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
