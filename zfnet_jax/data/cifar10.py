"""CIFAR-10 (Krizhevsky 2009) through tensorflow-datasets, without TensorFlow.

Without TensorFlow, tensorflow-datasets reads a prepared CIFAR-10 but cannot prepare
one. So the archive is fetched and opened here, by the standard library, and handed to
the registered builder, whose own layout any program then reads.
"""

import contextlib
import hashlib
import http.client
import io
import logging
import os
import shutil
import socket
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.files import DataNotFoundError

_logger = logging.getLogger(__name__)

_SPLITS = {
    "train": [f"data_batch_{batch}.bin" for batch in range(1, 6)],
    "test": ["test_batch.bin"],
}
_CLASS_NAMES = "batches.meta.txt"
_SIDE = 32
_RECORD_BYTES = 1 + 3 * _SIDE * _SIDE
_READ_AT_ONCE = 1000
_CONNECT_SECONDS = 5.0
_STALL_SECONDS = 30.0
_REMEDIES = (
    "name a prepared directory with --data-dir or TFDS_DATA_DIR, or connect to the "
    "network, or use --dataset shapes, which needs no files"
)


@dataclass(frozen=True)
class Archive:
    """Where the archive of CIFAR-10 in its binary version is, and what it must be.

    Attributes:
        url: Its http or https address.
        sha256: Of the archive, in hex.
        size: Of the archive, in bytes.
    """

    url: str
    sha256: str
    size: int


def load_cifar10(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    archive: Archive | None = None,
) -> Dataset:
    """Decode CIFAR-10 into memory, after preparing it where that is still to be done.

    Args:
        split: `"train"` (50,000 images) or `"test"` (10,000), or a part such as
            `"train[:1000]"`, as tensorflow-datasets writes it.
        data_dir: Where `cifar10/` lies or will lie; a copy of the official archive that
            lies there is used instead of the network. By default what the environment
            variable TFDS_DATA_DIR names, else `~/tensorflow_datasets`.
        archive: What to fetch when nothing is prepared. By default the official
            archive, with the size and checksum that tensorflow-datasets has for it.

    Returns:
        The images in the order of the prepared files. `source` says whether their
        pixels are the original ones or have been through JPEG.

    Raises:
        DataNotFoundError: CIFAR-10 is not prepared and cannot be fetched (which is
            known within 10 s where there is no network), or what is there is damaged.
        ValueError: There is no such split.
    """
    if split.partition("[")[0] not in _SPLITS:
        raise ValueError(
            f"split must be 'train' or 'test', or a part such as 'train[:1000]', "
            f"not {split!r}"
        )
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(default if data_dir is None else data_dir).expanduser()
    builder = _builder(root)
    if not _is_prepared(builder):
        _prepare(builder, root, archive)
        builder = _builder(root)
    return _read(builder, split)


def _builder(root: Path) -> Any:
    # Imported on use: it takes a second, and those who train on shapes never need it.
    import tensorflow_datasets as tfds

    # What is thrown at a damaged file is not documented, and comes from four libraries.
    try:
        with _silence():
            return tfds.builder("cifar10", data_dir=root)
    except Exception as error:
        raise _damaged(root / "cifar10", error) from error


def _is_prepared(builder: Any) -> bool:
    with _silence():
        return builder.is_prepared()


def _read(builder: Any, split: str) -> Dataset:
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    try:
        with _silence():
            source = builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError as error:
        raise DataNotFoundError(
            f"the CIFAR-10 in {builder.data_path} is prepared in a format that cannot "
            "be read without TensorFlow: prepare it with file_format='array_record', "
            "or name another --data-dir"
        ) from error
    except ValueError as error:
        raise ValueError(f"split {split!r}: {_first_line(error)}") from error
    except Exception as error:
        raise _damaged(builder.data_path, error) from error

    images = np.empty((len(source), _SIDE, _SIDE, 3), np.uint8)
    labels = np.empty(len(source), np.int32)
    jpeg = False
    try:
        # One batch after another, so that the encoded images never all stay in memory.
        for start in range(0, len(source), _READ_AT_ONCE):
            part = range(start, min(start + _READ_AT_ONCE, len(source)))
            for index, example in zip(part, source.__getitems__(part), strict=True):
                with Image.open(io.BytesIO(example["image"])) as image:
                    images[index] = np.asarray(image)
                    jpeg |= image.format == "JPEG"
                labels[index] = example["label"]
        names = _class_names(builder)
    except Exception as error:
        raise _damaged(builder.data_path, error) from error
    pixels = "re-encoded as JPEG, not the original pixels" if jpeg else "lossless"
    return Dataset(
        images=images,
        labels=labels,
        class_names=names,
        name="cifar10",
        source=f"CIFAR-10 {builder.version} {split}, tensorflow-datasets, {pixels}",
    )


def _class_names(builder: Any) -> tuple[str, ...]:
    names = tuple(builder.info.features["label"].names)
    # What tensorflow-datasets makes up where the file of names is gone.
    if names == tuple(map(str, range(len(names)))):
        raise FileNotFoundError("label.labels.txt is missing")
    return names


def _prepare(builder: Any, root: Path, archive: Archive | None) -> None:
    """Write the prepared form under `root`; on an error leave nothing there."""
    target = Path(builder.data_path)
    archive = archive or _official(builder)
    try:
        if target.exists() and any(target.iterdir()):
            raise _damaged(target, FileNotFoundError("dataset_info.json is missing"))
        local = root / os.path.basename(urlsplit(archive.url).path)
        origin = str(local) if local.is_file() else archive.url
        if origin == archive.url and not _reachable(archive.url):
            raise DataNotFoundError(
                f"CIFAR-10 is not prepared in {target} and "
                f"{urlsplit(archive.url).hostname} cannot be reached: {_REMEDIES}"
            )
        # All is built beside its final place and moved there in one step, so that
        # neither an error nor another process at the same task leaves half of it there.
        home = next(folder for folder in (root, *root.parents) if folder.exists())
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=home) as stage:
            path = _download(archive, Path(stage)) if origin == archive.url else local
            _verify(path, archive, origin)
            _build(_extract(path, origin), Path(stage))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(Path(stage) / target.relative_to(root), target)
            except OSError:
                # Another process was first: what it wrote is as good.
                if not _is_prepared(builder):
                    raise
    except OSError as error:
        raise DataNotFoundError(
            f"CIFAR-10 cannot be prepared in {target}: {_first_line(error)}; "
            "name a directory that can be written, or a prepared one, with --data-dir"
        ) from error


def _official(builder: Any) -> Archive:
    ((url, info),) = (type(builder).url_infos or {}).items()
    return Archive(url, info.checksum, int(info.size))


def _reachable(url: str) -> bool:
    """Whether the host, or the proxy that stands before it, accepts a connection."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or {"https": 443}.get(address.scheme, 80)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((address.hostname, port), _CONNECT_SECONDS).close()
            connected.set()

    # Looking up a name has no time limit of its own, so a thread is left to it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return connected.is_set()


def _download(archive: Archive, folder: Path) -> Path:
    path = folder / "archive.tar.gz"
    host = urlsplit(archive.url).hostname
    # The one message that shows without any set-up: this may take minutes.
    _logger.warning(
        "CIFAR-10 is not prepared: fetching %.0f MB from %s", archive.size / 1e6, host
    )
    # Not urlopen, which keeps the proxies of the first call that any program made.
    opener = urllib.request.build_opener()
    failure: Exception | None = None
    for _ in range(2):
        try:
            with (
                opener.open(archive.url, timeout=_STALL_SECONDS) as response,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(response, file)
            if path.stat().st_size >= archive.size:
                return path
            failure = EOFError(f"only {path.stat().st_size} of {archive.size} bytes")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            failure = error
    raise DataNotFoundError(
        f"CIFAR-10 could not be fetched from {host}, tried twice "
        f"({_first_line(failure)}): {_REMEDIES}"
    ) from failure


def _verify(path: Path, archive: Archive, origin: str) -> None:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise DataNotFoundError(
            f"the archive of CIFAR-10 from {origin} is damaged, nothing was prepared: "
            f"its sha256 is {sha256}, not {archive.sha256}; remove it or try again"
        )


def _extract(path: Path, origin: str) -> dict[str, bytes]:
    """The files of the archive that are wanted, by name."""
    wanted = {_CLASS_NAMES, *_SPLITS["train"], *_SPLITS["test"]}
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                content = tar.extractfile(member) if name in wanted else None
                if content is not None:
                    files[name] = content.read()
        if wanted - files.keys():
            raise EOFError(f"it has no {min(wanted - files.keys())}")
        for name in wanted - {_CLASS_NAMES}:
            if len(files[name]) % _RECORD_BYTES:
                raise EOFError(f"{name} does not end with a whole image")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataNotFoundError(
            f"the archive of CIFAR-10 from {origin} is not of the expected form, "
            f"nothing was prepared: {_first_line(error)}"
        ) from error
    return files


def _build(files: dict[str, bytes], stage: Path) -> None:
    """Let the registered builder write the files, as PNG, so that no pixel changes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    base: Any = tfds.builder_cls("cifar10")

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        names = files[_CLASS_NAMES].decode().split()
        self.info.features["label"].names = names
        return {split: _examples(files, split) for split in _SPLITS}

    with _silence():
        # Registered again, the name would be taken twice.
        with registered.skip_registration():
            builder_cls = type(
                "Cifar10",
                (base,),
                {
                    "name": base.name,
                    "pkg_dir_path": base.pkg_dir_path,
                    "url_infos": base.url_infos,
                    "_split_generators": split_generators,
                },
            )
        builder_cls(data_dir=stage).download_and_prepare(
            download_dir=stage / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )


def _examples(
    files: dict[str, bytes], split: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    # Keys and ids are those of the registered builder: the key decides the order.
    records = np.frombuffer(b"".join(files[name] for name in _SPLITS[split]), np.uint8)
    for index, record in enumerate(records.reshape(-1, _RECORD_BYTES)):
        pixels = record[1:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        png.seek(0)
        yield (
            index,
            {"id": f"{split}_{index:05d}", "image": png, "label": int(record[0])},
        )


def _damaged(path: os.PathLike[str], error: Exception) -> DataNotFoundError:
    return DataNotFoundError(
        f"the prepared CIFAR-10 in {path} is damaged ({_first_line(error)}): remove "
        "that directory to have it prepared again, or name another with --data-dir"
    )


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what tensorflow-datasets prints, logs, and draws as progress.

    With its first message absl gives the root logger a handler; that is taken back too.
    """
    absl = logging.getLogger("absl")
    level, handlers = absl.level, logging.root.handlers[:]
    absl.setLevel(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        absl.setLevel(level)
        logging.root.handlers[:] = handlers
