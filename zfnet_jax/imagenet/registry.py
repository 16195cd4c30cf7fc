"""Networks that others trained on ImageNet and published, by name.

>>> PUBLIC["vgg16"].url.rpartition("/")[2]
'vgg16-397923af.pth'
>>> PUBLIC["vgg16"].network().layers["conv5_3"].receptive_field.size
(196, 196)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from zfnet_jax import download, state_dict
from zfnet_jax.arch import ARCHITECTURES, Architecture
from zfnet_jax.data.preprocessing import CAFFE, TORCHVISION, Normalization
from zfnet_jax.files import extract_single
from zfnet_jax.imagenet import resnet, squeezenet
from zfnet_jax.imagenet.classes import CLASS_NAMES
from zfnet_jax.imagenet.plain import PlainNetwork
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, network

_TORCHVISION = "https://download.pytorch.org/models/"
_IMGCLSMOB = "https://github.com/osmr/imgclsmob/releases/download/"
_DEEP_COMPRESSION = (
    "https://raw.githubusercontent.com/songhan/SqueezeNet-Deep-Compression/"
    "5623e3cdbe1fcd83328c61ce2ee42c34ed319aa3/compressed_SqueezeNet.net"
)


class PublicNetwork(NamedTuple):
    """A published network.

    Attributes:
        url: Address of its weights.
        model: An architecture, or a function of parameters and images.
        preprocess: Preprocessing of its images.
    """

    url: str
    model: Architecture | PlainNetwork
    preprocess: Normalization = TORCHVISION

    def fetch(self) -> Path:
        """Return the path of the weights, after fetching them if they are missing.

        Raises:
            DamagedFileError: The file is not what was published; it is removed.
            DataNotFoundError: The file is missing and cannot be fetched.
        """
        folder, name = download.cache_folder(), self.url.rpartition("/")[2]
        if name.endswith(".net"):
            path = folder / f"{name}.safetensors"
            if not path.exists():
                file = download.fetch(self.url, folder)
                squeezenet.decompress(file, path)
                file.unlink()
            squeezenet.check(path)
            return path
        path = folder / name.removesuffix(".zip")
        if not path.exists():
            file = download.fetch(self.url, folder, ", or give the path of the file")
            if file != path:
                extract_single(file, path)
                file.unlink()
        # torchvision's names hold a sha256, those of imgclsmob a sha1.
        algorithm = "sha256" if self.url.startswith(_TORCHVISION) else "sha1"
        (digits,) = re.findall(r"-([0-9a-f]{8})\.pth", name)
        download.check(path, algorithm, digits)
        return path

    def network(self) -> Network:
        """Build the network without its weights, for what is known of its layers."""
        if isinstance(self.model, Architecture):
            arch = self.model
            weights = nnx.eval_shape(lambda: ConvNet(arch, rngs=nnx.Rngs(0)))
        else:
            zeros = {n: np.zeros(x, np.float32) for n, x in self.model.shapes.items()}
            weights = self.model.convert(self.url, zeros)
        return self._finish(weights, CLASS_NAMES)

    def build(
        self,
        source: str,
        tensors: Mapping[str, Any],
        class_names: Sequence[str] = CLASS_NAMES,
    ) -> Network:
        """Build the network from the tensors of its file.

        Args:
            source: Where the tensors come from, for messages.
            tensors: As for `state_dict.build`.
            class_names: One name per class.

        Raises:
            ValueError: The tensors do not fit.
        """
        model = self.model.with_classes(len(class_names))
        if isinstance(model, Architecture):
            weights = state_dict.build(source, tensors, model)
        else:
            tensors = _strip(tensors, model)
            state_dict.check(source, "the network", tensors, model.shapes)
            weights = model.convert(source, tensors)
        return self._finish(weights, class_names)

    def _finish(self, weights: Any, class_names: Sequence[str]) -> Network:
        known = {"preprocess": self.preprocess, "class_names": class_names}
        if isinstance(self.model, Architecture):
            return network(weights, **known)
        model = self.model
        return network(model.apply, model.image_shape, params=weights, **known)


def recognize(tensors: Mapping[str, Any]) -> tuple[str, int] | None:
    """Find the network that a file's tensors belong to.

    Returns:
        Its name and the number of classes; None if there is no such network.
    """
    for name, public in PUBLIC.items():
        if isinstance(public.model, PlainNetwork):
            own, expected = _strip(tensors, public.model), public.model.shapes
            # Another number of tensors is an error with a name, not another network.
            if len(own.keys() ^ expected.keys()) < len(expected) / 10:
                classifier = own.get(public.model.classifier)
                count = classifier.shape[:1] if classifier is not None else ()
                return name, *(count or (1000,))
    try:
        arch = state_dict.recognize("", tensors)
    except ValueError:
        return None
    has_norm = any(name.endswith(".running_mean") for name in tensors)
    name = f"{arch.name}-bn" if has_norm else arch.name
    return (name, arch.num_classes) if name in PUBLIC else None


def _strip(tensors: Mapping[str, Any], plain: PlainNetwork) -> dict[str, Any]:
    """Drop a prefix that all names share, such as `module.`, and counters."""
    first = next(iter(plain.shapes))
    prefixes = [n.removesuffix(first) for n in tensors if f".{n}".endswith(f".{first}")]
    prefix = min(prefixes, key=len, default="")
    tensors = state_dict.drop_counters(tensors)
    return {name.removeprefix(prefix): x for name, x in tensors.items()}


def _chain(arch: str, file: str) -> PublicNetwork:
    base = _TORCHVISION if "/" not in file else _IMGCLSMOB
    return PublicNetwork(f"{base}{file}", ARCHITECTURES[arch])


def _function(model: PlainNetwork, file: str) -> PublicNetwork:
    return PublicNetwork(f"{_TORCHVISION}{file}", model)


PUBLIC = {
    "zfnet-imagenet": _chain("zfnet-imagenet", "v0.0.395/zfnet-1727-d010ddca.pth.zip"),
    "zfnetb-imagenet": _chain(
        "zfnetb-imagenet", "v0.0.400/zfnetb-1490-f6bec24e.pth.zip"
    ),
    "alexnet-imagenet": _chain(
        "alexnet-imagenet", "v0.0.481/alexnet-1664-2768cdb3.pth.zip"
    ),
    "alexnet-torchvision": _chain("alexnet-torchvision", "alexnet-owt-7be5be79.pth"),
    "vgg11": _chain("vgg11", "vgg11-8a719046.pth"),
    "vgg13": _chain("vgg13", "vgg13-19584684.pth"),
    "vgg16": _chain("vgg16", "vgg16-397923af.pth"),
    "vgg19": _chain("vgg19", "vgg19-dcbb9e9d.pth"),
    "vgg11-bn": _chain("vgg11", "vgg11_bn-6002323d.pth"),
    "vgg13-bn": _chain("vgg13", "vgg13_bn-abd245e5.pth"),
    "vgg16-bn": _chain("vgg16", "vgg16_bn-6c64b313.pth"),
    "vgg19-bn": _chain("vgg19", "vgg19_bn-c79401a0.pth"),
    "squeezenet-v1.0": PublicNetwork(_DEEP_COMPRESSION, squeezenet.V1_0_CAFFE, CAFFE),
    "squeezenet-torchvision": _function(squeezenet.V1_0, "squeezenet1_0-b66bff10.pth"),
    "squeezenet-1.1-torchvision": _function(
        squeezenet.V1_1, "squeezenet1_1-b8a52dc0.pth"
    ),
    "resnet18": _function(resnet.RESNET18, "resnet18-f37072fd.pth"),
    "resnet34": _function(resnet.RESNET34, "resnet34-b627a593.pth"),
    "resnet50": _function(resnet.RESNET50, "resnet50-0676ba61.pth"),
}
