"""Weight files: each tensor in its place, or an error that names it."""

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from zfnet_jax import weights
from zfnet_jax.arch import (
    ALEXNET,
    ZFNET,
    ZFNET32,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ablate,
)
from zfnet_jax.data import Preprocessing
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, network
from zfnet_jax.weights import load, load_weights, save


def zero(*shape):
    return np.zeros(shape, np.float32)


# Every extent differs, so that exchanging two axes cannot go unnoticed.
SMALL = Architecture(
    "small",
    (9, 11),
    (
        Conv("conv1", 4, kernel=(3, 2), stride=(1, 2), padding=((1, 0), (0, 1))),
        MaxPool("pool1", kernel=2, stride=(2, 1)),
        Conv("conv2", 6, kernel=3, padding=1, groups=2),
        Dense("fc3", 7),
        Dense("logits", 5, relu=False),
    ),
)
SHAPES = {
    "conv1.weight": (4, 3, 3, 2),
    "conv1.bias": (4,),
    "conv2.weight": (6, 2, 3, 3),
    "conv2.bias": (6,),
    "fc3.weight": (7, 6 * 4 * 5),
    "fc3.bias": (7,),
    "fc4.weight": (5, 7),
    "fc4.bias": (5,),
}
# Made by references/make_torch_files.py, where SMALL is written in PyTorch.
REFERENCES = Path(__file__).parent / "references"
TORCH_FILES = ("torch_zip.pt", "torch_legacy.pth")
METADATA = {"command": "train --seed 3", "seed": 3, "accuracy": 0.1 + 0.2}
NAMES = ("aéroplane", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def state():
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def model(state):
    return load_weights(state, SMALL)


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(1).normal(size=(3, 9, 11, 3))
    return jnp.asarray(values, jnp.float32)


@pytest.fixture
def about():
    mean = np.random.default_rng(2).uniform(0, 255, (9, 11, 3)).astype(np.float32)
    preprocess = Preprocessing(mean, 1 / 58)
    return {"preprocess": preprocess, "class_names": NAMES, "metadata": METADATA}


@pytest.fixture
def file(tmp_path, model, about):
    save(tmp_path / "net", model, **about)
    return tmp_path / "net"


def test_first_dense_layer_by_hand():
    # One 1 x 2 map of two channels; torch counts it c0x0 c0x1 c1x0 c1x1.
    arch = Architecture("tiny", (1, 2), (Dense("logits", 1, relu=False),), channels=2)
    state = {
        "logits.weight": np.array([[1.0, 10.0, 100.0, 1000.0]]),
        "logits.bias": np.array([0.5]),
    }
    image = jnp.array([[[[1.0, 3.0], [2.0, 4.0]]]])
    assert load_weights(state, arch)(image).item() == 1 + 20 + 300 + 4000 + 0.5


def test_classifier_goes_by_its_name_too(state, model, images):
    renamed = {key.replace("fc4", "logits"): array for key, array in state.items()}
    np.testing.assert_array_equal(load_weights(renamed, SMALL)(images), model(images))


@pytest.mark.parametrize(
    ("removed", "number"), [((), 4), (("fc3",), 3), (("conv1", "conv2", "fc3"), None)]
)
def test_classifier_is_numbered_after_the_last_layer(tmp_path, about, removed, number):
    layers = (*SMALL.layers[:2], Conv("conv2", 6, kernel=3), *SMALL.layers[3:])
    arch = ablate(Architecture("varied", (9, 11), layers), remove=removed)
    model = ConvNet(arch, init=lambda _, *spec: jnp.ones(*spec), rngs=nnx.Rngs(0))
    save(tmp_path / "net", model, **about)
    arrays = safetensors.numpy.load_file(tmp_path / "net")
    name = f"fc{number}" if number else "logits"
    assert f"{name}.weight" in arrays
    assert len(arrays) == 1 + 2 * (4 - len(removed))
    assert load(tmp_path / "net").model.arch == arch


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_floats_become_float32_and_are_copied(state, dtype):
    given = {name: array.astype(dtype) for name, array in state.items()}
    expected = given["conv1.bias"].astype(np.float32)
    conv1 = vars(load_weights(given, SMALL))["conv1"]
    given["conv1.bias"][...] = 0
    np.testing.assert_array_equal(conv1.bias[...], expected, strict=True)


def test_number_of_classes(state, images):
    wider = {**state, "fc4.weight": np.ones((8, 7)), "fc4.bias": np.ones(8)}
    assert load_weights(wider, SMALL, num_classes=8)(images).shape == (3, 8)


def test_architectures_survive_in_a_file(tmp_path):
    gray = Architecture("gray", (9, 11), SMALL.layers, channels=1)
    for arch in (ZFNET32, gray):
        # Narrow, as only the description is tested.
        widths = {layer.name: 2 for layer in arch.layers if isinstance(layer, Dense)}
        narrow = ablate(arch, widths=widths)
        model = load_weights(zeros(narrow), narrow)
        preprocess = Preprocessing(zero(*arch.input_hw, arch.channels))
        about = {"preprocess": preprocess, "class_names": ("a", "b"), "metadata": {}}
        save(tmp_path / "net", model, **about)
        again = load(tmp_path / "net").model.arch
        assert again == narrow and hash(again) == hash(narrow)
        assert load_weights(tmp_path / "net").arch == narrow


def test_round_trip(file, model, about, images):
    net = load(file)
    np.testing.assert_array_equal(net.model(images), model(images))
    assert net.model.arch == SMALL
    # It is a network as any other, under `jax.jit` too.
    assert isinstance(net, Network) and network(net) is net
    np.testing.assert_allclose(net(images), model(images), rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(lambda n, x: n(x))(net, images), net(images))
    assert net.targets("b", 2).tolist() == [1, 1]
    assert net.class_names == NAMES
    assert net.metadata == METADATA
    assert net.preprocess.scale == about["preprocess"].scale
    np.testing.assert_array_equal(net.preprocess.mean, about["preprocess"].mean)


def test_file_has_torch_names_and_layout(file, state):
    arrays = safetensors.numpy.load_file(file)
    assert arrays.pop("preprocessing.mean").shape == (9, 11, 3)
    assert arrays.keys() == state.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[name])


def test_same_content_is_same_bytes(tmp_path, file, model, about):
    about["metadata"] = dict(reversed(METADATA.items()))
    for given in (model, network(model)):
        save(tmp_path / "again", given, **about)
        assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_damage_is_one_line(file, tmp_path):
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    description = content.index(b"architecture")
    damaged = [content[:length] for length in (0, 1, 8, 9, 100, len(content) - 1)]
    for position in (0, 7, description, header, len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 1
        damaged.append(bytes(changed))
    for name in TORCH_FILES:
        torch = (REFERENCES / name).read_bytes()
        damaged += [torch[: len(torch) // n] for n in (1000, 20, 2)]
    damaged += [b"PK\3\4" + bytes(1000), b"<html>" * 9]
    for content in damaged:
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(DamagedFileError, match=f"^{tmp_path}/damaged is") as caught:
            load(tmp_path / "damaged")
        assert "\n" not in str(caught.value)


# Torchvision's names: each kind of layer is counted, with the modules between them.
COUNTED = {
    "conv1": "features.9",
    "conv2": "features.10",
    "fc3": "classifier.1",
    "fc4": "classifier.4",
}


def renamed(state, modules, prefix=""):
    """The same arrays, backwards, so that no order but that of the numbers tells."""
    pairs = (name.split(".") for name in reversed(state))
    return {
        f"{prefix}{modules[module]}.{kind}": state[f"{module}.{kind}"]
        for module, kind in pairs
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.0.encoder."])
@pytest.mark.parametrize(
    "modules",
    [
        {name: name for name in COUNTED},
        COUNTED,
        {
            name: n.replace("features.", "features.module.")
            for name, n in COUNTED.items()
        },
    ],
    ids=["ours", "torchvision", "torchvision, parallel features"],
)
def test_names_and_shared_prefixes(tmp_path, state, model, modules, prefix):
    given = renamed(state, modules, prefix)
    # torch's AveragedModel counts its updates in it.
    given["n_averaged"] = np.array(7)
    safetensors.numpy.save_file(given, tmp_path / "net")
    for source in (given, tmp_path / "net"):
        weights = jax.tree.leaves(load_weights(source, SMALL))
        for ours, theirs in zip(weights, jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="without a description: use load_weights"):
        load(tmp_path / "net")


def test_every_problem_is_named_as_in_the_file(state):
    given = renamed(state, COUNTED)
    broken = {
        **given,
        "features.10.weight": np.ones((6, 4, 3, 3), np.float32),
        "features.10.bias": np.full(6, np.nan, np.float32),
        "classifier.1.bias": np.full(7, 1e300),
        "classifier.4.weight": state["fc4.weight"].astype(np.int32),
        "classifier.6.bias": state["fc4.bias"],
        "features.11.running\nmean": np.ones(6, np.float32),
    }
    del broken["features.9.bias"], broken["classifier.1.weight"]
    with pytest.raises(ValueError) as caught:
        load_weights(broken, SMALL)
    start, _, problems = str(caught.value).partition(": ")
    assert start == "the mapping does not fit small"
    assert problems.split("; ") == [
        "features.9.bias is missing",
        "features.10.weight has shape (6, 4, 3, 3), expected (6, 2, 3, 3)",
        "features.10.bias is not finite in float32",
        "classifier.1.weight is missing",
        "classifier.1.bias is not finite in float32",
        "classifier.4.weight has dtype int32, expected a float",
        "classifier.6.bias is not expected",
        "'features.11.running\\nmean' is not expected",
    ]
    # A layer is under one name only.
    with pytest.raises(ValueError) as caught:
        load_weights({**state, **given}, SMALL)
    assert str(caught.value).count(" is not expected") == len(given)


def test_prefixes_that_not_all_names_share(state):
    given = renamed(state, COUNTED, "model.")
    with pytest.raises(ValueError, match=r"start with 'model\.', but not loss\.scale;"):
        load_weights({**given, "loss.scale": np.ones(())}, SMALL)
    with pytest.raises(ValueError, match=r"'model\.', but not teacher\."):
        load_weights(given | renamed(state, COUNTED, "teacher."), SMALL)


def test_batch_normalization_is_named(state):
    norm = {f"features.1.{x}": np.ones(4) for x in ("weight", "running_mean")}
    for arch in (SMALL, None):
        with pytest.raises(ValueError, match=r"has batch normalization .*running_mean"):
            load_weights(renamed(state, COUNTED) | norm, arch)
    del norm["features.1.running_mean"]
    with pytest.raises(ValueError, match=r"normalization or .*features\.1\.weight$"):
        load_weights(renamed(state, COUNTED) | norm, SMALL)


def test_ten_thousand_tensors_are_one_short_line():
    many = {f"layer{i}.weight": zero(1, 1) for i in range(10_000)}
    for arch in (SMALL, None):
        with pytest.raises(ValueError, match=r"[0-9]{4,5} more\)?$") as caught:
            load_weights(many | {"x" * 10**6: zero(1)}, arch)
        assert len(str(caught.value)) < 1000


# Recognition


def zeros(arch, prefix=""):
    """Weights of an architecture that take no memory."""
    zero = np.zeros((), np.float32)
    return {
        f"{prefix}{name}": np.broadcast_to(zero, shape)
        for name, shape in weights._shapes("zeros", (), arch).items()
    }


@pytest.mark.parametrize(("prefix", "classes"), [("", 1), ("module.", 7)])
def test_architectures_are_recognized_with_any_number_of_classes(prefix, classes):
    arch = ZFNET32.with_classes(classes)
    given = zeros(arch, prefix)
    assert load_weights(given).arch == arch
    assert load_weights(given, num_classes=classes).arch == arch
    with pytest.raises(ValueError, match=rf"shape \({classes},.* expected \(3,"):
        load_weights(given, num_classes=3)
    with pytest.raises(ValueError, match=r"not fit zfnet32: .*x is not expected"):
        load_weights({**given, f"{prefix}x": zero(3)})


def test_alexnet_and_zfnet_are_told_apart():
    assert weights._recognize("it", zeros(ALEXNET.with_classes(5))).name == "alexnet"
    # Contrast normalization has no weights.
    with pytest.raises(ValueError, match=r"it fits zfnet and zfnet-plain, .* `arch`"):
        weights._recognize("it", zeros(ZFNET))


def test_what_is_not_recognized_is_shown(state):
    message = r"fits none of zfnet, .*give `arch` .*: conv1\.weight \(4, 3, 3, 2\), co"
    with pytest.raises(ValueError, match=message):
        load_weights(state)
    with pytest.raises(ValueError, match=r"tensors: none"):
        load_weights({})


# Files of PyTorch


@pytest.mark.parametrize("name", TORCH_FILES)
def test_torch_files_against_stored_logits(name):
    expected = np.load(REFERENCES / "torch_logits.npz")
    logits = load_weights(REFERENCES / name, SMALL)(expected["images"])
    assert np.abs(expected["logits"]).max() > 0.1
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-6)


def test_absent_and_irregular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (load, load_weights, weights.read_safetensors):
        with pytest.raises(DataNotFoundError, match=f"no weight file {tmp_path}/no"):
            read(tmp_path / "no")
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(ValueError, match=f"^{path} is a folder, pipe or dev"):
                read(path)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match="called 'zfnet33'; shipped: ") as caught:
        load("zfnet33")
    for name in str(caught.value).partition("shipped: ")[2].split(", "):
        net = load(name)
        assert len(net.class_names) == net.num_classes
        assert {"command", "seed", "test_accuracy"} <= net.metadata.keys()


def described_otherwise(file, tmp_path, entry, value):
    """A copy of a file with another description, and the digest that fits it."""
    arrays, texts = weights.read_safetensors(file)
    header = json.loads(texts["zfnet_jax"])
    del header["sha256"]
    *path, last = entry.split(".")
    part = header
    for name in path:
        part = part[name]
    part[last] = value
    header["sha256"] = weights._digest(header, arrays)
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(arrays, path, {"zfnet_jax": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("architecture", {}, "layers"),
        ("architecture.layers", [{"kind": "Pool3d"}], "'Pool3d'"),
        ("class_names", ["one"], "1 class names, expected 5"),
        ("metadata.accuracy", float("nan"), "metadata accuracy must be text or a"),
        ("metadata", "text", "invalid description"),
        ("preprocessing.size", [9, 9], r"images \(9, 9, 3\), expected"),
    ],
)
def test_invalid_descriptions(file, tmp_path, entry, value, message):
    path = described_otherwise(file, tmp_path, entry, value)
    for read in (load, load_weights):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} has an invalid description")
    assert load_weights(path, SMALL).arch == SMALL


def test_nothing_wrong_is_written(tmp_path, model, about):
    path = tmp_path / "net"
    for wrong, message in [
        ({"class_names": NAMES[:4]}, "4 class names, expected 5"),
        ({"metadata": {"accuracy": math.nan}}, "metadata accuracy must be"),
        ({"preprocess": Preprocessing(zero(9, 11, 1))}, r"11, 1\), expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            save(path, model, **{**about, **wrong})
    function = network(lambda x: x.mean((1, 2)), (9, 11, 3))
    with pytest.raises(ValueError, match="save takes a ConvNet, not a function"):
        save(path, function, **about)
    broken = nnx.clone(model)
    bias = vars(broken)["fc3"].bias
    bias[...] = bias[...].at[2].set(jnp.inf)
    with pytest.raises(ValueError, match=r"fc3\.bias is not finite"):
        save(path, broken, **about)
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_live(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from tests.references.make_torch_files import small

    def checkpoint(net):
        """What training loops put beside the weights."""
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.randn(1, 3, 9, 11)).sum().backward()
        optimizer.step()
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
        return {
            "network": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": [torch.get_rng_state(), np.random.get_state()],
        }

    torch.manual_seed(zipped)
    net = small()
    images = torch.randn(3, 3, 9, 11)
    path = tmp_path / "weights"
    for dtype, wrapped in [
        (torch.float32, lambda net: dict(net.named_parameters())),
        (torch.float64, lambda net: {"epoch": 1, "model": net.state_dict()}),
        (torch.float16, lambda net: torch.nn.DataParallel(net).state_dict()),
        (torch.bfloat16, lambda net: {"model_state_dict": net.state_dict()}),
        (torch.float32, checkpoint),
        (
            torch.float32,
            lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
        ),
    ]:
        torch.save(
            wrapped(net.to(dtype)),
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        with torch.no_grad():
            expected = net.to(torch.float32)(images).numpy()
        logits = load_weights(path, SMALL)(images.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parity
def test_a_network_of_pytorch_is_the_same_here():
    """Logits and their gradient, with PyTorch's own layers and order of flattening."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    nn = torch.nn
    arch = Architecture(
        "net",
        (17, 20),
        (
            Conv("conv1", 8, kernel=5, stride=2, padding=1),
            MaxPool("pool1", padding=1),
            ContrastNorm("norm1", size=3, k=1.0, alpha=0.2),
            Conv("conv2", 6, kernel=3, padding=1, groups=2),
            Dense("fc3", 7),
            Dense("logits", 5, relu=False),
        ),
    )
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 8, 5, 2, 1))
    network.add_module("relu1", nn.ReLU())
    network.add_module("pool1", nn.MaxPool2d(3, 2, 1))
    # PyTorch divides alpha by the number of channels in the window.
    network.add_module("norm1", nn.LocalResponseNorm(3, 0.2 * 3, 0.75, 1.0))
    network.add_module("conv2", nn.Conv2d(8, 6, 3, 1, 1, groups=2))
    network.add_module("relu2", nn.ReLU())
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc3", nn.Linear(6 * 4 * 5, 7))
    network.add_module("relu3", nn.ReLU())
    network.add_module("fc4", nn.Linear(7, 5))
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    model = load_weights(state, arch)

    x = np.random.default_rng(0).normal(size=(2, 17, 20, 3)).astype(np.float32)
    theirs = torch.from_numpy(x).requires_grad_()
    logits = network(theirs.permute(0, 3, 1, 2))
    (logits * torch.arange(5)).sum().backward()
    assert theirs.grad is not None

    def weighted(images):
        ours = model(images)
        return (ours * jnp.arange(5.0)).sum(), ours

    gradient, ours = jax.jit(jax.grad(weighted, has_aux=True))(jnp.asarray(x))
    np.testing.assert_allclose(ours, logits.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)
