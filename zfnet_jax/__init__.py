"""Zeiler & Fergus (2013) in JAX: ZFNet, what it learns, and how to see it."""

from zfnet_jax.analysis import (
    Correspondence,
    Invariance,
    Occlusion,
    TopActivations,
    correspondence,
    invariance,
    occlusion,
    top_activations,
)
from zfnet_jax.arch import (
    ALEXNET,
    ARCHITECTURES,
    ZFNET,
    ZFNET32,
    ZFNET_PLAIN,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ReceptiveField,
    ablate,
    receptive_field,
)
from zfnet_jax.attribution import attribute
from zfnet_jax.deconvnet import Projections, project
from zfnet_jax.model import ConvNet, Features
from zfnet_jax.relu_rules import with_relu_rule
from zfnet_jax.weights import Pretrained, load, load_weights, save

__version__ = "0.1.0"

__all__ = [
    "ALEXNET",
    "ARCHITECTURES",
    "ZFNET",
    "ZFNET32",
    "ZFNET_PLAIN",
    "Architecture",
    "ContrastNorm",
    "Conv",
    "ConvNet",
    "Correspondence",
    "Dense",
    "Features",
    "Invariance",
    "MaxPool",
    "Occlusion",
    "Pretrained",
    "Projections",
    "ReceptiveField",
    "TopActivations",
    "ablate",
    "attribute",
    "correspondence",
    "invariance",
    "load",
    "load_weights",
    "occlusion",
    "project",
    "receptive_field",
    "save",
    "top_activations",
    "with_relu_rule",
]
