"""Published networks with random weights against torchvision's modules."""

import math

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from tests.comparison import cut, distance
from tests.networks import build, random_tensors
from tests.references import make_plain as reference
from zfnet_jax.imagenet import resnet
from zfnet_jax.imagenet.plain import PlainNetwork
from zfnet_jax.imagenet.registry import PUBLIC


def compute(name: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient for a kernel of PyTorch's file, OIHW."""
    plain, layer, module = reference.CASES[name]
    tensors = random_tensors(plain.shapes)
    params = plain.convert(name, tensors)

    def loss(kernel, params, image):
        params = params | {layer: params[layer] | {"kernel": kernel}}
        logits = plain.apply(params, image)
        return (logits**2).sum() / 2, logits

    differentiate = jax.jit(jax.grad(loss, has_aux=True))
    gradient, logits = differentiate(params[layer]["kernel"], params, image)
    gradient = np.asarray(gradient).transpose(3, 2, 0, 1)
    norm = module.replace("conv", "bn")
    if f"{norm}.running_var" in tensors:
        # The kernel is scaled by the normalization that is folded into it.
        variance = tensors[f"{norm}.running_var"] + 1e-5
        scale = tensors[f"{norm}.weight"] / np.sqrt(variance)
        gradient = gradient * scale[:, None, None, None]
    return np.asarray(logits), gradient


@pytest.mark.parametrize("name", reference.CASES)
def test_logits_and_gradients_are_those_stored(name):
    logits, gradient = reference.select(*compute(name, reference.make_image()))
    with np.load(reference.STORE) as stored:
        assert distance(logits, stored[f"{name}/logits"]) <= 1e-5
        assert distance(gradient, stored[f"{name}/gradient"]) <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("name", reference.CASES)
def test_logits_and_gradients_are_those_of_torchvision(name):
    pytest.importorskip("torchvision", reason="needs the parity extra")
    image = reference.make_image()[:, ::-1, 5:].copy()
    for ours, theirs in zip(
        compute(name, image), reference.compute(name, image), strict=True
    ):
        assert distance(ours, theirs) <= 1e-5


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("alexnet-torchvision", 61_100_840, 0.714e9),
        ("vgg16", 138_357_544, 15.470e9),
        ("squeezenet-torchvision", 1_248_424, 0.819e9),
        ("squeezenet-1.1-torchvision", 1_235_496, 0.349e9),
        ("resnet18", 11_689_512, 1.814e9),
        ("resnet34", 21_797_672, 3.664e9),
        ("resnet50", 25_557_032, 4.089e9),
    ],
)
def test_sizes_are_those_that_torchvision_publishes(name, parameters, multiply_adds):
    public = PUBLIC[name]
    net = public.network()
    if isinstance(public.model, PlainNetwork):
        # A normalization has a scale and a shift per channel; folded, a bias is left.
        shapes = public.model.shapes.items()
        norms = [shape for key, shape in shapes if key.endswith("running_var")]
        parameters -= sum(math.prod(shape) for shape in norms)
    assert net.parameters == parameters
    assert net.parameters == sum(x.parameters for x in net.layers.values())
    assert net.multiply_adds == pytest.approx(multiply_adds, abs=0.5e6)


def test_layers_of_a_resnet_are_named_after_its_modules():
    net = build(resnet.RESNET18)
    names = list(net.layers)
    assert names[:5] == "conv1 maxpool layer1.0.conv1 layer1.0.conv2 layer1.0".split()
    assert names[-4:] == "layer4.1.conv2 layer4.1 avgpool fc".split()
    block = [name for name in names if name.startswith("layer3.0")]
    parts = "layer3.0.downsample.0 layer3.0.conv1 layer3.0.conv2 layer3.0".split()
    assert block == parts
    rectified = [name for name in names if net.layers[name].rectified]
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    assert rectified == [
        "conv1",
        *(name for block in blocks for name in (f"{block}.conv1", block)),
    ]


def test_receptive_fields_of_a_resnet_are_known():
    """Of PyTorch's ResNet-18: 435 pixels, 32 apart (Araujo et al. 2019, Distill)."""
    net = build(resnet.RESNET18)
    fields = {name: layer.receptive_field for name, layer in net.layers.items()}
    assert [name for name, field in fields.items() if not field] == ["avgpool", "fc"]
    for name, size, stride in (
        ("conv1", 7, 2),
        ("maxpool", 11, 4),
        ("layer1.1", 43, 4),
        ("layer2.1", 99, 8),
        ("layer3.1", 211, 16),
        ("layer4.1", 435, 32),
    ):
        assert (fields[name].size, fields[name].stride) == ((size,) * 2, (stride,) * 2)


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_a_crop_of_a_resnet_has_all_of_the_projection(rule):
    plain = resnet.RESNET18
    params = plain.convert("random", random_tensors(plain.shapes))
    net = zf.network(plain.apply, (96, 96, 3), params=params)
    image = np.random.default_rng(0).standard_normal((1, 96, 96, 3), np.float32)
    place = {"units": [7], "positions": (5, 6), "rule": rule}
    whole = zf.project(net, image, "layer2.0", **place)
    crop = zf.project(net, image, "layer2.0", **place, crop=True)
    assert whole.activations[0] > 0
    inside = cut(whole.pixels[0], crop.boxes[0])
    assert distance(crop.pixels[0], inside) <= 1e-4
    # Fast convolutions leave traces of rounding elsewhere.
    outside = np.linalg.norm(whole.pixels) - np.linalg.norm(inside)
    assert abs(outside) <= 1e-6 * np.linalg.norm(inside)
