"""Files of PyTorch, written without it: a pickle opcode by opcode, in either format.

So a file's content is known exactly, and can be one that no honest program writes.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

REBUILD = "torch._utils", "_rebuild_tensor_v2"
KINDS = {"float16": "Half", "float32": "Float", "float64": "Double", "int64": "Long"}


# The opcodes of a pickle (protocol 2 unless said), one function for each kind of value.


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def several(*items):
    return b"(" + b"".join(items) + b"t"


def extents(values):
    return several(*map(integer, values))


def imported(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def mapping(entries, start=None):
    start = imported("collections", "OrderedDict") + b")R" if start is None else start
    items = b"".join(text(name) + value for name, value in entries.items())
    return start + b"(" + items + b"u"


def storage(key="0", kind="Float", length=24, view=b""):
    return (
        several(
            text("storage"),
            imported("torch", f"{kind}Storage"),
            text(key),
            text("cpu"),
            integer(length),
            view,
        )
        + b"Q"
    )


def tensor(offset=0, size=(4, 6), stride=(6, 1), stored=None, function=REBUILD):
    arguments = several(
        storage() if stored is None else stored,
        integer(offset),
        extents(size),
        extents(stride),
        b"\x89",
        mapping({}),
    )
    return imported(*function) + arguments + b"R"


def program(value):
    return b"\x80\x02" + value + b"."


def state_dict(state: Mapping[str, np.ndarray]) -> bytes:
    """A state dict whose tensors have a storage each, called "0", "1" and so on."""
    entries = {}
    for key, (name, array) in enumerate(state.items()):
        strides = [stride // array.itemsize for stride in array.strides]
        stored = storage(str(key), KINDS[array.dtype.name], array.size)
        entries[name] = tensor(0, array.shape, strides, stored)
    return mapping(entries)


# The two formats around a pickle, with storages by their keys.


def write_zip(
    file: IO[bytes],
    value: bytes,
    storages: Mapping[str, Any],
    compression: int = zipfile.ZIP_STORED,
    **more: Any,
) -> None:
    records = {"data.pkl": program(value), **more}
    records |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(f"net/{name}")
            info.compress_type = compression
            with archive.open(info, "w", force_zip64=True) as record:
                record.write(data)


def write_legacy(
    file: IO[bytes], value: bytes, storages: Mapping[str, tuple[int, Any]]
) -> None:
    """Write storages with the lengths given beside them, in elements."""
    for first in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        file.write(pickle.dumps(first, 2))
    file.write(program(value) + pickle.dumps([*storages], 2))
    for length, data in storages.values():
        file.write(struct.pack("<q", length))
        file.write(data)


def write_state(file: IO[bytes], state: Mapping[str, np.ndarray], is_zip: bool) -> None:
    """Write contiguous arrays as `torch.save` writes a state dict."""
    arrays = {str(key): array for key, array in enumerate(state.values())}
    if is_zip:
        write_zip(file, state_dict(state), {k: a.data for k, a in arrays.items()})
    else:
        storages = {key: (a.size, a.data) for key, a in arrays.items()}
        write_legacy(file, state_dict(state), storages)
