"""Time occlusion against Captum's Occlusion, side by side, and compare the results.

    pip install -e ".[parity]" && python -m benchmarks.occlusion

Both sides slide a square over one 224 x 224 image of noise and follow one logit of the
same network, in float32 on as many threads as there are processors. Captum runs a full
pass for each position, in batches of the size that serves it best; ours recomputes what
the square can change. The sides take turns after a warm-up, and the ratio Captum / ours
is taken turn by turn: above 1 ours is faster.

Our logits are compared with those of one full pass for each position, and the mean drop
of the logit over all squares that cover a pixel with Captum's attribution of it. Both
differences are shares of a map's range.
"""

from __future__ import annotations

import dataclasses
import sys
import timeit
from typing import Literal

import jax
import numpy as np
import torch
import tyro

import zfnet_jax as zf
from benchmarks.captum_sides import captum_occlusion
from benchmarks.torch_network import torch_images, torch_network
from benchmarks.turns import take_turns
from zfnet_jax.analysis.occlusion import Occlusion as Responses
from zfnet_jax.analysis.occlusion import occlusion
from zfnet_jax.arch import ARCHITECTURES

_BATCHES = (1, 4, 8, 16, 32, 64, 128)
_TARGET = 7
# Of the range of a map.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Options:
    """Time occlusion against Captum."""

    model: Literal["zfnet", "zfnet-plain", "alexnet"] = "zfnet"
    """The network, with weights drawn at random."""
    size: int = 32
    """Height and width of the square, in pixels."""
    stride: int = 16
    """Pixels from one position to the next."""
    turns: int = 7
    """Turns that each side takes."""


def run_full_passes(
    model: zf.ConvNet, image: np.ndarray, responses: Responses, batch: int = 13
) -> np.ndarray:
    """Logits of one full pass per position."""
    run = jax.jit(lambda model, images: model(images))
    boxes = responses.boxes.reshape(-1, 4)
    logits = []
    for start in range(0, len(boxes), batch):
        covered = np.repeat(image, batch, 0)
        for picture, (top, left, bottom, right) in zip(
            covered, boxes[start : start + batch], strict=False
        ):
            picture[top:bottom, left:right] = 0
        logits.append(np.asarray(run(model, covered)))
    return np.concatenate(logits)[: len(boxes)].reshape(responses.logits[0].shape)


def main(options: Options) -> str | None:
    """Print the times, the ratio and the two differences; what is wrong with these."""
    arch = ARCHITECTURES[options.model]
    torch.manual_seed(0)
    network = torch_network(arch).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    model = zf.load_weights(state, arch)
    image = np.random.default_rng(0).standard_normal((1, *arch.input_hw, 3), np.float32)
    where = torch_images(image), _TARGET, options.size, options.stride
    theirs = captum_occlusion(network, *where)

    def ours() -> Responses:
        return occlusion(
            model, image, _TARGET, size=options.size, stride=options.stride
        )

    responses = ours()
    attribution = theirs(1)
    best = min(
        _BATCHES, key=lambda batch: timeit.timeit(lambda: theirs(batch), number=1)
    )
    result = take_turns(lambda: theirs(best), ours, options.turns)
    print(
        f"{arch.name}: {len(responses.tops)} x {len(responses.lefts)} positions of "
        f"{options.size} pixels, Captum with perturbations_per_eval={best}"
    )
    print(f"Captum {result.theirs:.2f} s  ours {result.ours:.3f} s  ratio {result}")
    expected = run_full_passes(model, image, responses)
    apart = np.abs(responses.logits[0] - expected).max((0, 1)) / np.ptp(
        expected, (0, 1)
    )
    print(f"logits against full passes: {apart.max():.1e} of a map's range")
    expected = attribution[0, 0].numpy()
    drops = responses.clean_logits[0, _TARGET] - responses.logits[0, ..., _TARGET]
    error = np.abs(responses.by_pixel(drops) - expected).max() / np.ptp(expected)
    print(f"drops against Captum's attribution: {error:.1e}")
    if max(apart.max(), error) > _TOLERANCE:
        return f"error: more than {_TOLERANCE:g} of the range apart"
    return None


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
