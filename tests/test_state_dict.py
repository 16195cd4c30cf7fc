"""State dicts: names, layouts, recognition and the folding of batch normalization."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.test_weights import SMALL, draw_state
from tests.torch_writer import write_state
from zfnet_jax import state_dict
from zfnet_jax.arch import (
    ALEXNET,
    ARCHITECTURES,
    ZFNET,
    ZFNET32,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
)
from zfnet_jax.state_dict import recognize
from zfnet_jax.weights import load_weights


@pytest.fixture(scope="module")
def state():
    return draw_state()


@pytest.fixture(scope="module")
def model(state):
    return load_weights(state, SMALL)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 9, 11, 3)).astype(np.float32)


def assert_same_weights(one, other):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_first_dense_layer_by_hand():
    # One 1 x 2 map of two channels; torch counts it c0x0 c0x1 c1x0 c1x1.
    arch = Architecture("tiny", (1, 2), (Dense("logits", 1, relu=False),), channels=2)
    state = {
        "logits.weight": np.array([[1.0, 10.0, 100.0, 1000.0]]),
        "logits.bias": np.array([0.5]),
    }
    image = jnp.array([[[[1.0, 3.0], [2.0, 4.0]]]])
    assert load_weights(state, arch)(image).item() == 1 + 20 + 300 + 4000 + 0.5


@pytest.mark.parametrize("name", ["fc4", "logits"])
def test_classifier_goes_by_its_number_or_its_name(state, model, name):
    renamed = {key.replace("fc4", name): array for key, array in state.items()}
    assert_same_weights(load_weights(renamed, SMALL), model)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_floats_become_float32_and_are_copied(state, dtype):
    given = {name: array.astype(dtype) for name, array in state.items()}
    expected = given["conv1.bias"].astype(np.float32)
    conv1 = vars(load_weights(given, SMALL))["conv1"]
    given["conv1.bias"][...] = 0
    np.testing.assert_array_equal(conv1.bias[...], expected, strict=True)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("block", [1, 50])
def test_files_read_block_by_block(tmp_path, state, model, monkeypatch, is_zip, block):
    half = {name: x.astype(np.float16) for name, x in state.items()}
    for arrays in (state, half):
        with (tmp_path / "net").open("wb") as file:
            write_state(file, arrays, is_zip)
        monkeypatch.setattr(state_dict, "_BLOCK", block)
        blocks = load_weights(tmp_path / "net", SMALL)
        monkeypatch.undo()
        whole = model if arrays is state else load_weights(half, SMALL)
        assert_same_weights(blocks, whole)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_is_held_once(tmp_path, monkeypatch, is_zip):
    layers = Dense("fc1", 4000), Dense("logits", 2, relu=False)
    arch = Architecture("wide", (20, 20), layers)
    given = {
        "fc1.weight": np.ones((4000, 1200), np.float32),
        "fc1.bias": np.ones(4000, np.float32),
        "fc2.weight": np.ones((2, 4000), np.float32),
        "fc2.bias": np.ones(2, np.float32),
    }
    with (tmp_path / "net").open("wb") as file:
        write_state(file, given, is_zip)
    addresses = []

    def allocate(shape):
        addresses.append((kernel := original(shape)).ctypes.data)
        return kernel

    original = state_dict._allocate
    monkeypatch.setattr(state_dict, "_allocate", allocate)
    monkeypatch.setattr(state_dict, "_BLOCK", 2**16)
    tracemalloc.start()
    model = load_weights(tmp_path / "net", arch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * (tmp_path / "net").stat().st_size
    # On the CPU the arrays of JAX are this memory.
    kernels = model.fc1.kernel[...], model.logits.kernel[...]
    assert [kernel.unsafe_buffer_pointer() for kernel in kernels] == addresses


def test_number_of_classes(state, images):
    wider = {**state, "fc4.weight": np.ones((8, 7)), "fc4.bias": np.ones(8)}
    net = load_weights(wider, SMALL, num_classes=8)
    assert net.arch.num_classes == 8 and net(images).shape == (3, 8)
    with pytest.raises(ValueError, match=r"fc4\.bias has shape \(8,\), expected \(5,"):
        load_weights(wider, SMALL)


# Each kind of layer is counted: by torchvision with the modules between them.
OURS = {name: name for name in ("conv1", "conv2", "fc3", "fc4")}
TORCHVISION = {
    "conv1": "features.9",
    "conv2": "features.10",
    "fc3": "classifier.1",
    "fc4": "classifier.4",
}
PARALLEL = {
    k: n.replace("features.", "features.module.") for k, n in TORCHVISION.items()
}
PYTORCHCV = {
    "conv1": "features.stage9.unit2.conv",
    "conv2": "features.stage10.unit1.conv",
    "fc3": "output.fc2.fc",
    "fc4": "output.fc3",
}


def renamed(state, modules, prefix=""):
    """The same arrays, backwards, so that no order but that of the numbers tells."""
    pairs = (name.split(".") for name in reversed(state))
    return {
        f"{prefix}{modules[module]}.{kind}": state[f"{module}.{kind}"]
        for module, kind in pairs
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.0.encoder."])
@pytest.mark.parametrize("modules", [OURS, TORCHVISION, PARALLEL, PYTORCHCV])
def test_names_and_shared_prefixes(tmp_path, state, model, modules, prefix):
    given = renamed(state, modules, prefix)
    # torch's AveragedModel counts its updates in it.
    given["n_averaged"] = np.array(7)
    safetensors.numpy.save_file(given, tmp_path / "net")
    for source in (given, tmp_path / "net"):
        assert_same_weights(load_weights(source, SMALL), model)


def test_every_problem_is_named_as_in_the_file(state):
    given = renamed(state, TORCHVISION)
    broken = {
        **given,
        "features.10.weight": np.ones((6, 4, 3, 3), np.float32),
        "classifier.4.weight": state["fc4.weight"].astype(np.int32),
        "classifier.6.bias": state["fc4.bias"],
        "features.11\n": np.ones(6, np.float32),
    }
    del broken["features.9.bias"], broken["classifier.1.weight"]
    with pytest.raises(ValueError) as caught:
        load_weights(broken, SMALL)
    start, _, problems = str(caught.value).partition(": ")
    assert start == "the mapping does not fit small"
    assert problems.split("; ") == [
        "features.9.bias is missing",
        "features.10.weight has shape (6, 4, 3, 3), expected (6, 2, 3, 3)",
        "classifier.1.weight is missing",
        "classifier.4.weight has dtype int32, expected a float",
        "classifier.6.bias is not expected",
        "'features.11\\n' is not expected",
    ]
    last = np.where(np.arange(6) == 5, 1e300, 1)[:, None, None, None]
    for name, value in [
        ("features.10.weight", last * np.ones((6, 2, 3, 3))),
        ("classifier.1.bias", np.full(7, np.nan)),
    ]:
        with pytest.raises(ValueError, match=rf"^the mapping: {name} is not finite"):
            load_weights({**given, name: value}, SMALL)
    # A layer is under one name only.
    with pytest.raises(ValueError) as caught:
        load_weights({**state, **given}, SMALL)
    assert str(caught.value).count(" is not expected") == len(given)


@pytest.mark.parametrize("modules", [OURS, TORCHVISION])
def test_prefixes_that_not_all_names_share(state, modules):
    given = renamed(state, modules, "model.")
    with pytest.raises(ValueError, match=r"start with 'model\.', but not loss\.scale;"):
        load_weights({**given, "loss.scale": np.ones(())}, SMALL)
    both = {**given, **renamed(state, modules, "teacher.")}
    with pytest.raises(
        ValueError, match=r"'model\.', but not teacher\..* 2 more;"
    ) as e:
        load_weights({**both, "x": np.ones(2), "y": np.ones(2)}, SMALL)
    assert "\n" not in str(e.value)


def test_ten_thousand_tensors_are_one_short_line(state):
    zero = np.zeros((1, 1), np.float16)
    many = {f"layer{i}.weight": zero for i in range(10_000)}
    for arch in (SMALL, None):
        with pytest.raises(ValueError, match=r"[0-9]{4,5} more\)?$") as caught:
            load_weights(many, arch)
        assert len(str(caught.value)) < 1000
    long = {**state, "x" * 10**6: np.zeros(3)}
    with pytest.raises(ValueError, match=r"xxx\.\.\. is not expected") as caught:
        load_weights(long, SMALL)
    assert len(str(caught.value)) < 300


# Recognition


def zeros(arch, name=lambda entry: entry.names[0], prefix=""):
    """Weights of an architecture that take no memory, under the names of modules."""
    zero = np.zeros((), np.float32)
    given = {}
    for entry in state_dict.list_weights(arch):
        module = f"{prefix}{name(entry)}"
        given[f"{module}.weight"] = np.broadcast_to(zero, entry.shape)
        given[f"{module}.bias"] = np.broadcast_to(zero, entry.shape[:1])
    return given


@pytest.mark.parametrize(("prefix", "classes"), [("", 1), ("module.", 7)])
def test_architectures_are_recognized_with_any_number_of_classes(prefix, classes):
    arch = ZFNET32.with_classes(classes)
    given = zeros(arch, prefix=prefix)
    assert load_weights(given).arch == arch
    assert load_weights(given, num_classes=classes).arch == arch
    with pytest.raises(ValueError, match=rf"shape \({classes},.* expected \(3,"):
        load_weights(given, num_classes=3)
    # Recognized by shape: other problems are named as always.
    with pytest.raises(ValueError, match=r"fit zfnet32: .*x is not expected"):
        load_weights({**given, f"{prefix}x": np.zeros(3)})


def name_as_pytorchcv(entry):
    kind, number = entry.layer.name[:-1], entry.layer.name[-1]
    if kind == "conv":
        return f"features.stage{number}.unit1.conv"
    return {"fc6": "output.fc1.fc", "fc7": "output.fc2.fc"}.get(
        entry.layer.name, "output.fc3"
    )


def name_as_torchvision(arch, step=2):
    """Name the modules; each convolution counts as `step` modules."""
    names, number = {}, 0
    for layer in arch.layers:
        if isinstance(layer, Dense):
            break
        names[layer.name] = f"features.{number}"
        number += step if isinstance(layer, Conv) else 1
    names |= {"fc6": "classifier.1", "fc7": "classifier.4", "logits": "classifier.6"}
    return lambda entry: names[entry.layer.name]


@pytest.mark.parametrize(
    "name", ["zfnet-imagenet", "zfnetb-imagenet", "alexnet-imagenet"]
)
def test_pytorchcv_networks_are_recognized(name):
    arch = ARCHITECTURES[name]
    assert recognize("it", zeros(arch, name_as_pytorchcv)) == arch
    with pytest.raises(ValueError, match="fits none of alexnet-torchvision, vgg11, "):
        recognize("it", zeros(arch, name_as_torchvision(arch)))


@pytest.mark.parametrize(
    "name", ["alexnet-torchvision", "vgg11", "vgg13", "vgg16", "vgg19"]
)
def test_torchvision_networks_are_recognized(name):
    arch = ARCHITECTURES[name]
    assert recognize("it", zeros(arch, name_as_torchvision(arch))) == arch
    # vggN_bn: a normalization follows every convolution.
    given = zeros(arch, name_as_torchvision(arch, step=3))
    for name in [n for n in given if n.startswith("features") and n.endswith("bias")]:
        norm = f"features.{int(name.split('.')[1]) + 1}"
        for part in ("running_mean", "running_var", "weight", "bias"):
            given[f"{norm}.{part}"] = given[name]
    assert recognize("it", given) == arch


def test_plain_names_leave_contrast_normalization_open():
    assert recognize("it", zeros(ALEXNET.with_classes(5))).name == "alexnet"
    with pytest.raises(
        ValueError, match=r"it fits zfnet and zfnet-plain, .* give `arch`"
    ):
        recognize("it", zeros(ZFNET))


def test_what_is_not_recognized_is_shown(state):
    with pytest.raises(ValueError) as caught:
        load_weights(state)
    message = str(caught.value)
    assert message.startswith("the mapping fits none of zfnet, zfnet-plain, alexnet, ")
    assert "give `arch`" in message
    assert "conv1.weight (4, 3, 3, 2), conv1.bias (4," in message
    with pytest.raises(ValueError, match=r"tensors: none"):
        load_weights({})


# Batch normalization

# It follows conv1, fc4 and, without a scale, conv2; it precedes conv2 and fc3.
NORMALIZED = Architecture(
    "normalized",
    (9, 11),
    (
        Conv("conv1", 4, kernel=(3, 2), stride=(1, 2), padding=((1, 0), (0, 1))),
        MaxPool("pool1", kernel=2, stride=(2, 1)),
        Conv("conv2", 6, kernel=(2, 3), groups=2),
        Dense("fc3", 7),
        Dense("fc4", 8),
        Dense("logits", 5, relu=False),
    ),
)
# By the numbers of a sequence: ReLU, pooling and dropout have numbers, too.
WEIGHTS = {
    "features.0": (4, 3, 3, 2),
    "features.5": (6, 2, 2, 3),
    "classifier.1": (7, 54),
    "classifier.3": (8, 7),
    "classifier.6": (5, 8),
}
NORMS = {
    "features.1": 4,
    "features.4": 4,
    "features.6": 6,
    "classifier.0": 54,
    "classifier.4": 8,
}


def draw_normalized():
    generator = np.random.default_rng(2)
    state = {f"{n}.weight": generator.normal(size=s) for n, s in WEIGHTS.items()}
    # PyTorch's users leave out the bias before a normalization.
    for name in ("features.5", "classifier.1", "classifier.3", "classifier.6"):
        state[f"{name}.bias"] = generator.normal(size=WEIGHTS[name][0])
    for name, size in NORMS.items():
        state[f"{name}.running_mean"] = generator.normal(size=size)
        state[f"{name}.running_var"] = generator.uniform(1e-5, 2, size)
        state[f"{name}.num_batches_tracked"] = np.array(7)
        if name != "features.6":
            state[f"{name}.weight"] = generator.normal(size=size)
            state[f"{name}.bias"] = generator.normal(size=size)
    return {n: x.astype(np.float32 if x.ndim else np.int64) for n, x in state.items()}


def normalize(x, state, name):
    def part(kind, default=1.0):
        values = state.get(f"{name}.{kind}")
        return default if values is None else values.reshape(-1, *[1] * (x.ndim - 2))

    x = (x - part("running_mean")) / np.sqrt(part("running_var") + 1e-5)
    return part("weight") * x + part("bias", 0.0)


def convolve(x, state, name, stride=(1, 1), groups=1):
    kernel, bias = state[f"{name}.weight"], state.get(f"{name}.bias", np.zeros(1))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    parts = zip(
        np.split(windows[:, :, :: stride[0], :: stride[1]], groups, 1),
        np.split(kernel, groups),
        strict=True,
    )
    maps = [np.einsum("bcyxij,ocij->boyx", part, k) for part, k in parts]
    return np.concatenate(maps, 1) + bias[:, None, None]


def compute_unfolded(state, images):
    """The logits of NORMALIZED with its normalizations, in NumPy and float64."""
    state = {name: x.astype(np.float64) for name, x in state.items()}

    def dense(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = images.astype(np.float64).transpose(0, 3, 1, 2)
    x = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)))
    x = normalize(convolve(x, state, "features.0", (1, 2)), state, "features.1")
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))
    x = windows[:, :, ::2].max((4, 5)).clip(0)
    x = convolve(normalize(x, state, "features.4"), state, "features.5", groups=2)
    x = normalize(x, state, "features.6").clip(0).reshape(len(x), -1)
    x = dense(normalize(x, state, "classifier.0"), "classifier.1").clip(0)
    x = normalize(dense(x, "classifier.3"), state, "classifier.4").clip(0)
    return dense(x, "classifier.6")


def test_folded_batch_normalization_is_the_unfolded_one(images):
    state = draw_normalized()
    expected = compute_unfolded(state, images)
    for prefix in ("", "module."):
        given = {f"{prefix}{name}": x for name, x in state.items()}
        logits = load_weights(given, NORMALIZED)(images)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parity
def test_folded_batch_normalization_is_that_of_pytorch(images):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    nn = torch.nn
    net = nn.Sequential()
    features = nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), (1, 2), bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2, (2, 1)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, (2, 3), groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
    )
    classifier = nn.Sequential(
        *(nn.BatchNorm1d(54), nn.Linear(54, 7), nn.ReLU()),
        *(nn.Linear(7, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)),
    )
    net.add_module("features", features)
    net.add_module("flatten", nn.Flatten())
    net.add_module("classifier", classifier)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = nn.functional.pad(x, (0, 1, 1, 0))
    for _ in range(3):
        net.train()(x)
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    logits = load_weights(arrays, NORMALIZED)(images)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    ours = compute_unfolded(arrays, images)
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("norm", "size", "message"),
    [
        (
            "features.9",
            4,
            r"features\.9 cannot be folded exactly into .*features\.10, which pads",
        ),
        ("features.12", 6, r"features\.12, which does not directly follow a conv"),
        ("features.bn1", 4, r"features\.bn1 does not tell .* fold it into that layer"),
    ],
)
def test_batch_normalization_that_cannot_be_folded(state, norm, size, message):
    modules = {**TORCHVISION, "conv1": "features.7"}
    given = renamed(state, modules, "module.")
    ones = np.ones(size, np.float32)
    statistics = {f"module.{norm}.running_{part}": ones for part in ("mean", "var")}
    with pytest.raises(ValueError, match=rf"batch normalization.*{message}") as caught:
        load_weights({**given, **statistics}, SMALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"or similar layer.*features\.8\.weight$"):
        load_weights({**given, "module.features.8.weight": ones}, SMALL)


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
