"""What a network has learned, measured over a dataset."""

from zfnet_jax.analysis.evolution import Evolution, evolution, motion, project_course
from zfnet_jax.analysis.mining import TopActivations, project_top, top_activations

__all__ = [
    "Evolution",
    "TopActivations",
    "evolution",
    "motion",
    "project_course",
    "project_top",
    "top_activations",
]
