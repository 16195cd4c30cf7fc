"""PyTorch files without PyTorch: hand-written pickles, honest and hostile.

Each pickle is written opcode by opcode, so that its content is known exactly and can be
one that no honest program writes.
"""

import ast
import builtins
import collections
import copyreg
import datetime
import io
import os
import pathlib
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfnet_jax import torch_file
from zfnet_jax.torch_file import read_state_dict

NUMBERS = np.arange(24, dtype="<f4")
BYTES = NUMBERS.tobytes()
REBUILD = "torch._utils", "_rebuild_tensor_v2"


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


# The two formats around a pickle.


def zipped(value, data=(BYTES,), compression=zipfile.ZIP_STORED, **more):
    records = {"data.pkl": program(value), **more}
    records |= {f"data/{key}": record for key, record in enumerate(data)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(f"net/{name}"), record, compression)
    return file.getvalue()


def legacy(value, keys=("0",), length=24, data=BYTES):
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    start = b"".join(pickle.dumps(x, 2) for x in first)
    end = pickle.dumps(list(keys), 2) + struct.pack("<q", length) + data
    return start + program(value) + end


def refused(content):
    """The message of the error, which is one line and comes quickly."""
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        read_state_dict(content)
    assert time.perf_counter() - start < 30
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 600
    return message


FORMATS = pytest.mark.parametrize("file", [zipped, legacy])


@FORMATS
def test_views_of_one_storage(file):
    views = {
        "whole": ((0, (4, 6), (6, 1)), NUMBERS.reshape(4, 6)),
        "turned": ((6, (3, 3), (2, 6)), NUMBERS.reshape(4, 6)[1:, ::2].T),
        "row": ((12, (6,), (1,)), NUMBERS[12:18]),
        "scalar": ((7, (), ()), NUMBERS[7]),
        "last": ((23, (1, 1), (99, 2**61)), NUMBERS[23:].reshape(1, 1)),
        "repeated": ((3, (2, 5), (0, 1)), np.tile(NUMBERS[3:8], (2, 1))),
        "empty": ((24, (0, 3), (3, 1)), np.zeros((0, 3))),
    }
    state = read_state_dict(
        file(mapping({n: tensor(*v) for n, (v, _) in views.items()}))
    )
    assert list(state) == list(views)
    for name, (_, expected) in views.items():
        assert state[name].dtype == np.float32
        np.testing.assert_array_equal(state[name], expected)
        assert state[name].shape == expected.shape


@FORMATS
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Half", "<f2"),
        ("Float", "<f4"),
        ("Double", "<f8"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Short", "<i2"),
        ("Int", "<i4"),
        ("Long", "<i8"),
        ("Bool", "?"),
    ],
)
def test_numbers_of_every_kind(file, kind, dtype):
    values = np.array([0, 1, 100, 3], dtype)
    value = mapping({"x": tensor(1, (3,), (1,), storage("0", kind, 4))})
    data = values.tobytes()
    content = zipped(value, [data]) if file is zipped else legacy(value, "0", 4, data)
    array = read_state_dict(content)["x"]
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, values[1:])


def test_bfloat16_by_hand():
    # Sign, 8 bits of exponent, 7 of fraction: 1.5, -2, the largest below 4, infinity.
    data = struct.pack("<4H", 0x3FC0, 0xC000, 0x407F, 0x7F80)
    value = mapping({"x": tensor(0, (2, 2), (1, 2), storage("0", "BFloat16", 4))})
    array = read_state_dict(zipped(value, [data]))["x"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1.5, 3.984375], [-2, np.inf]])
    swapped = struct.pack(">4H", 0x3FC0, 0xC000, 0x407F, 0x7F80)
    array = read_state_dict(zipped(value, [swapped], byteorder=b"big"))["x"]
    np.testing.assert_array_equal(array, [[1.5, 3.984375], [-2, np.inf]])


def test_byte_order():
    value = mapping({"x": tensor()})
    for order, data in (("little", NUMBERS), ("big", NUMBERS.astype(">f4"))):
        state = read_state_dict(zipped(value, [data.tobytes()], byteorder=order))
        assert state["x"].dtype.isnative
        np.testing.assert_array_equal(state["x"], NUMBERS.reshape(4, 6))
    assert "byte order" in refused(zipped(value, byteorder=b"middle"))


@FORMATS
def test_a_parameter_and_what_stands_beside_it(file):
    hooks = mapping({})
    whole = tensor()
    kept = imported("torch._utils", "_rebuild_parameter")
    kept += several(whole, b"\x88", hooks) + b"R"
    older = imported("torch._utils", "_rebuild_tensor")
    older += several(storage(), integer(1), extents((2,)), extents((3,))) + b"R"
    entries = {"kept": kept, "older": older, "view": tensor(stored=storage(view=b"N"))}
    # A state_dict has an attribute, `_metadata`: BUILD sets it.
    metadata = mapping({"": mapping({"version": integer(1)}, b"}")})
    value = mapping(entries) + b"}" + text("_metadata") + metadata + b"sb"
    state = read_state_dict(file(value))
    assert state.keys() == entries.keys()
    np.testing.assert_array_equal(state["kept"], NUMBERS.reshape(4, 6))
    np.testing.assert_array_equal(state["older"], [1, 4])


def test_opcodes_of_protocol_4():
    def short(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()

    def stacked(module, name):
        return short(module) + b"\x94" + short(name) + b"\x93\x94"

    stored = b"(" + short("storage") + stacked("torch", "FloatStorage") + short("0")
    stored += short("cpu") + b"K\x18tQ"
    body = b"}\x94(" + short("a") + b"\x94" + stacked(*REBUILD)
    body += b"(" + stored + b"K\x06K\x02K\x03\x86K\x06K\x01\x86\x89Nt\x94R\x94"
    # Remembered in turn: the dict, a, the function's module and itself (3), the same
    # of the storage's kind, and the arguments (6).
    again = short("b") + b"h\x03h\x06R"
    value = b"\x95" + struct.pack("<Q", len(body)) + body + again + b"u"
    state = read_state_dict(zipped(value))
    expected = NUMBERS.reshape(4, 6)[1:3, :3]
    np.testing.assert_array_equal(state["a"], expected)
    np.testing.assert_array_equal(state["b"], expected)


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_state_within_a_checkpoint(file, key):
    moments = several(b"N", b"\x88", b"G" + struct.pack(">d", 0.9), integer(-(2**70)))
    entries = {
        "epoch": integer(3),
        "optimizer": b"}(" + integer(0) + mapping({"m": tensor(), "n": moments}) + b"u",
        "losses": b"](" + integer(1) + integer(2) + b"e",
        key: mapping({"x": tensor()}),
    }
    state = read_state_dict(file(mapping(entries, b"}")))
    assert list(state) == ["x"]
    np.testing.assert_array_equal(state["x"], NUMBERS.reshape(4, 6))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(), "its content is a Tensor, not a state dict"),
        (b"](" + tensor() + b"e", "its content is a list"),
        (
            imported("torch.nn", "Linear") + b")\x81}b",
            "its content is a 'torch.nn.Linear'",
        ),
        (mapping({}), "it has no state dict (empty)"),
        (
            mapping({"net": mapping({}), "a\nb": b"N"}),
            r"'net': a dict, 'a\nb': a NoneType",
        ),
        (b"}(" + integer(4) + tensor() + b"u", "it has no state dict (empty)"),
        (
            mapping({"a": mapping({"x": tensor()}), "b": mapping({"x": tensor()})}),
            "it has several state dicts ('a': a dict, 'b': a dict)",
        ),
        (
            mapping({"x": tensor(), "y": tensor(function=("torch._utils", "_q"))}),
            "its tensor 'y' is not read: 'torch._utils._q'",
        ),
    ],
)
def test_another_content_is_named(value, message):
    assert message in refused(zipped(value))


def pickled(value, protocol):
    return pickle.dumps(value, protocol)[2:-1]


BESIDE = {
    "counter": collections.Counter({2: 1, 4: 2}),
    "milestones": collections.defaultdict(list, {1: [2]}),
    "queue": collections.deque([1, 2], 5),
    "set": {1, 2, "x"},
    "frozen": frozenset({("a", 1)}),
    "bytes": b"\x00\xff",
    "numbers": {1: "a", 2.5: "b", None: "c", -3: "d"},
    "tuples": {("conv1", 3): 1, (1, (2, 3)): 2},
    "path": pathlib.PurePosixPath("/etc/passwd"),
    "time": datetime.datetime(2020, 1, 2),
    "scalar": np.float64(3),
    "array": np.arange(4),
    "complex": 3 + 4j,
    "huge": 2**3000,
    "range": range(3),
}


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("nested", [True, False])
def test_other_objects_beside_the_tensors(file, protocol, nested):
    entries = {name: pickled(value, protocol) for name, value in BESIDE.items()}
    loop: list = []
    loop.append((loop,))
    entries |= {
        "loop": pickled(loop, protocol),
        "device": imported("torch", "device") + several(text("cuda"), b"K\0") + b"R",
        "dtype": imported("torch", "bfloat16"),
        "size": imported("torch", "Size") + several(extents((3, 4))) + b"R",
        # An object with attributes, and a class whose attributes would be set.
        "config": imported("mine", "Config")
        + b")\x81"
        + mapping({"lr": b"K\1"})
        + b"b",
        "class": imported("mine", "Config") + mapping({"__init__": b"N"}) + b"b",
        "items": imported("mine", "Dict") + b")R(" + text("a") + b"Nu",
        "quantized": imported("torch._utils", "_rebuild_qtensor")
        + several(storage())
        + b"R",
    }
    inner = {"fc.weight": tensor(), "fc.bias": tensor(0, (4,), (1,))}
    if nested:
        entries["loss"] = tensor(0, (), ())
        value = mapping({**entries, "network": mapping(inner)}, b"}")
    else:
        del entries["quantized"]
        value = mapping({**entries, **inner})
    state = read_state_dict(file(value))
    assert list(state) == list(inner)
    np.testing.assert_array_equal(state["fc.weight"], NUMBERS.reshape(4, 6))


# What reaches outside the numbers.


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (4, 7), (6, 1)),
        (1, (4, 6), (6, 1)),
        (0, (25,), (1,)),
        (24, (), ()),
        (24, (1,), (1,)),
        (0, (2,), (24,)),
        (0, (2, 2), (2**61, 1)),
        (2**61, (1,), (1,)),
        (0, (2**40, 2**40), (1, 1)),
        # These wrap around to small numbers in 64 bits.
        (0, (2**32 + 1,), (2**32,)),
        (0, (3,), (2**61,)),
    ],
)
def test_a_tensor_reaches_outside_its_storage(file, offset, size, stride):
    message = refused(file(mapping({"x": tensor(offset, size, stride)})))
    assert message == "its tensor 'x' reaches outside its storage"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (23, (2,), (-1,)),
        (2**62, (1,), (1,)),
        (0, (2**64,), (0,)),
        (0, (2,), ()),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_extents_that_cannot_be(offset, size, stride):
    refused(zipped(mapping({"x": tensor(offset, size, stride)})))


def test_huge_shapes_take_no_memory():
    # Each element of a vast array is the same one: possible, but never copied here.
    vast = zipped(mapping({"x": tensor(0, (10**9, 10**6), (0, 0))}))
    vaster = zipped(mapping({"x": tensor(0, (2**61,) * 9, (0,) * 9)}))
    empty = zipped(mapping({"x": tensor(0, (0, 2**61, 2**61), (0,) * 3)}))
    tracemalloc.start()
    assert read_state_dict(vast)["x"].shape == (10**9, 10**6)
    refused(vaster)
    refused(empty)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_a_storage_is_all_there():
    value = mapping({"x": tensor()})
    for data in (BYTES[:-1], BYTES + b"\0", b""):
        assert f"has {len(data)} bytes, not 96" in refused(zipped(value, [data]))
    assert "its storage '0' is missing" in refused(zipped(value, []))
    assert "its storage '0' is missing" in refused(legacy(value, keys=()))
    assert "ends inside its storage '0'" in refused(legacy(value, data=BYTES[:-1]))
    for length in (2**40, -1, 2**62):
        assert "ends inside its storage" in refused(legacy(value, length=length))
    assert "has 80 bytes, not 96" in refused(legacy(value, length=20))
    assert "storage '1' is of an unknown type" in refused(legacy(value, keys=("1",)))
    assert "storage a int is of an unknown" in refused(legacy(value, keys=(0,)))
    twice = {"x": tensor(), "y": tensor(stored=storage("0", "Double", 24))}
    for file in (zipped, legacy):
        assert "has 96 bytes, not 192" in refused(file(mapping(twice)))


@pytest.mark.parametrize(
    "identity",
    [
        *(storage(length=length)[:-1] for length in (-1, 2**62, 2**100)),
        text("0"),
        b"N",
        several(text("module"), imported("torch", "FloatStorage"), text("net.py")),
        several(text("storage"), text("os.system"), text("0"), text("cpu"), b"K\x01"),
        storage(view=several(text("1"), integer(0), integer(4)))[:-1],
        storage(view=b"NN")[:-1],
        several(text("storage"), imported(*REBUILD), text("0"), text("cpu"), b"K\x01"),
        several(*map(text, ("storage", "torch.FloatStorage", "0", "cpu", "24"))),
    ],
)
def test_other_references_are_inert(identity):
    value = mapping({"x": tensor(), "y": identity + b"Q"})
    assert list(read_state_dict(zipped(value))) == ["x"]
    value = mapping({"x": tensor(), "y": tensor(stored=identity + b"Q")})
    assert "its tensor 'y' is not read" in refused(zipped(value))


@pytest.mark.parametrize("key", ["../../../etc/passwd", "/etc/passwd", "../data.pkl"])
def test_a_key_is_no_path(key):
    length = len(program(mapping({"x": tensor(stored=storage(key, "Byte", 0))}))) + 1
    value = mapping({"x": tensor(0, (1,), (1,), storage(key, "Byte", length))})
    assert f"its storage {key!r} is missing" in refused(zipped(value))


# What would run something.


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(trace):
    """Pickles, by the name of what they ask for, that would leave a trace."""
    command = f"touch {trace}"
    code = f"open({str(trace)!r}, 'w')"
    calls = {
        f"{os.system.__module__}.system": Call(os.system, command),
        "builtins.eval": Call(builtins.eval, code),
        "builtins.exec": Call(builtins.exec, code),
        "builtins.open": Call(open, str(trace), "w"),
        "builtins.getattr": Call(getattr, "", "format"),
    }
    for name, call in calls.items():
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            # Protocol 2 has the modules of Python 2.
            yield name.rpartition(".")[2], pickle.dumps({"x": call}, protocol)[2:-1]
    argument = several(text(command)) + b"R"
    for module, name in [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.nn.modules.container", "Sequential"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__class__"),
        ("collections.OrderedDict", "fromkeys"),
        ("", "collections.OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("zfnet_jax.torch_file", "io.open"),
    ]:
        yield name, imported(module, name) + argument
        yield name, text(module) + text(name) + b"\x93" + argument
        yield name, imported(module, name) + argument + b"}" + text("x") + b"Nsb"
        yield name, imported(module, name) + several(text(command)) + b"\x81"
        yield name, imported(module, name) + several(text(command)) + b"}\x92"
        yield name, imported(*REBUILD) + several(imported(module, name)) + b"R"


def test_nothing_is_called(tmp_path):
    trace = tmp_path / "trace"
    count = 0
    for name, value in hostile(trace):
        for file in (zipped, legacy):
            # Alone it is refused; beside tensors it is ignored.
            message = refused(file(value))
            assert file is legacy or name in message or b"_rebuild_" in value
            beside = file(mapping({"x": tensor(), "net": value}))
            if b"_rebuild_" in value:
                assert "its tensor 'net' is not read" in refused(beside)
            else:
                assert list(read_state_dict(beside)) == ["x"]
            count += 1
        assert not trace.exists()
    assert count > 100
    # The same as a plain pickle, in each of its protocols.
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(pickle.dumps(Call(os.system, f"touch {trace}"), protocol))
        assert not trace.exists()


def test_the_reader_has_nothing_to_run_things_with():
    tree = ast.parse(Path(torch_file.__file__).read_text(encoding="utf-8"))
    imports = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imports.isdisjoint({"pickle", "importlib", "os", "sys", "builtins", "torch"})
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    dangerous = {"eval", "exec", "compile", "getattr", "setattr", "__import__", "open"}
    assert names.isdisjoint(dangerous)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INST", b"(" + text("true") + b"ios\nsystem\n"),
        ("OBJ", b"(" + imported("collections", "OrderedDict") + text("a") + b"o"),
        ("PERSID", b"P../../etc/passwd\n"),
        ("DUP", b"]2"),
        ("STRING", b"S'\\8'\n"),
        ("INT", b"I" + b"9" * 10000 + b"\n"),
        ("NEXT_BUFFER", b"\x97"),
    ],
)
def test_opcodes_that_torch_never_writes(name, value):
    for file in (zipped, legacy):
        message = refused(file(value))
        assert name in message and "torch.save never writes" in message


@pytest.mark.parametrize(
    "value",
    [
        b"\x82\x01)R",
        b"\x83\x01\x00)R",
        b"\x84\x01\x00\x00\x00)R",
        # More bytes than there are.
        b"\x8b\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 8,
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x96" + b"\xff" * 7 + b"\x7f",
    ],
)
def test_extensions_and_sizes_beyond_the_file(value):
    copyreg.add_extension("os", "system", 1)
    tracemalloc.start()
    try:
        for file in (zipped, legacy):
            refused(file(value))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
        copyreg.remove_extension("os", "system", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (text("os.system") + several(text("true")) + b"R", "a str cannot be called"),
        (b"})R", "a dict cannot be called"),
        (b"](Nu", "not a state dict"),
        (b"}(Nu", "damaged at SETITEMS"),
        (b"NN\x93", "damaged at STACK_GLOBAL"),
        # An empty stack.
        (b"\x85", "its pickle is damaged at TUPLE1"),
        (b"t", "its pickle is damaged at TUPLE"),
        (b"R", "its pickle is damaged at REDUCE"),
        (b"a", "its pickle is damaged at APPEND"),
        (b"e", "its pickle is damaged at APPENDS"),
        (b"q\x00", "its pickle is damaged at BINPUT"),
        (b"h\x00", "its pickle is damaged at BINGET"),
        (b"Q", "its pickle is damaged at BINPERSID"),
        (b"\x93", "its pickle is damaged at STACK_GLOBAL"),
        (b"", "its pickle is damaged at STOP"),
    ],
)
def test_a_pickle_that_makes_no_sense(value, message):
    assert message in refused(zipped(value))


# What would take all time or memory.


def test_a_far_place_in_memory_takes_none():
    value = mapping({"x": tensor()}) + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff"
    tracemalloc.start()
    assert list(read_state_dict(zipped(value))) == ["x"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_repetition_is_bounded():
    # Each level holds the one below twice: as the key of a dict, or in a message, it
    # would be walked 2**64 times.
    levels = b")" + b"q\x00h\x00\x86" * 64
    for beside in (
        b"}" + levels + b"Ns",
        b"\x8f(" + levels + b"\x90",
        b"(" + levels + b"\x91",
    ):
        state = read_state_dict(zipped(mapping({"x": tensor(), "y": beside})))
        assert list(state) == ["x"]
    assert "a tuple cannot be called" in refused(zipped(levels + b")R"))
    assert "persistent object" in refused(zipped(levels + b"Q"))
    refused(zipped(mapping({"x": tensor(offset=1, stored=levels)})))
    # Depth alone is harmless.
    assert "is a tuple" in refused(zipped(b")" + b"\x85" * 200_000))


def test_long_programs_are_refused(monkeypatch):
    monkeypatch.setattr(torch_file, "_MOST_OPCODES", 1000)
    assert "more than 1000 opcodes" in refused(zipped(b"(" * 1001))


def test_compressed_archives_are_refused():
    bomb = zipped(b"N", [bytes(10**7)], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2e4
    tracemalloc.start()
    assert "is compressed" in refused(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_records_that_share_their_bytes_are_refused():
    content = zipped(mapping({"x": tensor()}), [bytes(5000)])
    end = content.rindex(b"PK\5\6")
    start = content.index(b"PK\1\2")
    last = content.rindex(b"PK\1\2")
    entries = content[start:end] + content[last:end] * 20
    count = content[start:end].count(b"PK\1\2") + 20
    tail = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0
    )
    assert "larger than the file" in refused(content[:start] + entries + tail)


def test_archives_of_another_kind():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    assert "not one that torch.save writes" in refused(file.getvalue())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a/data.pkl", program(b"}"))
    assert "no state dict" in refused(file.getvalue())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("b/data.pkl", program(b"}"))
    assert "not one that torch.save writes" in refused(file.getvalue())
    for content in (b"", b"\x93NUMPY", b"ustar", b"P", bytes(100)):
        assert refused(content) == "not a PyTorch file"
    assert "not one that torch.save writes" in refused(pickle.dumps(1, 2) * 3)


# Damage.


@FORMATS
def test_truncation(file):
    content = file(mapping({"x": tensor()}))
    for length in range(0, len(content), 3):
        refused(content[:length])


@FORMATS
def test_flips_of_bits(file):
    content = file(mapping({"x": tensor(), "y": tensor(0, (3,), (2,))}))
    good = read_state_dict(content)
    read = 0
    for position in range(0, 8 * len(content), 5):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        try:
            state = read_state_dict(bytes(changed))
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        if file is zipped:
            # An archive has a checksum for every record.
            np.testing.assert_equal(state, good)
        assert all(isinstance(array, np.ndarray) for array in state.values())
    assert read > (0 if file is zipped else 24 * 6)


PIECES = [bytes([code]) for code in b"NIt)]}(aesubRQ.q\x93\x94\x85\x86\x87\x88"] + [
    b"K\x02",
    b"q\x00",
    b"q\x01",
    b"h\x00",
    b"h\x01",
    text("storage"),
    text("x"),
    integer(-1),
    integer(2**62),
    imported("torch", "FloatStorage"),
    imported("collections", "OrderedDict"),
    imported(*REBUILD),
    imported("os", "system"),
    storage(),
    tensor(),
    mapping({"x": tensor()}),
    extents((2, 3)),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.binary(max_size=4))
@settings(max_examples=500)
def test_any_program_is_read_or_refused(pieces, junk):
    for value in (b"".join(pieces), b"".join(pieces) + junk):
        try:
            state = read_state_dict(zipped(value))
        except ValueError:
            continue
        assert all(isinstance(array, np.ndarray) for array in state.values())
