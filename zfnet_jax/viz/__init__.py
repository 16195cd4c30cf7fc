"""Arrays to figures: training, predictions, feature maps, projections, heat maps.

Nothing here knows a model: arrays and names go in, a matplotlib `(Figure, Axes)` comes
out, and nothing is shown, cached or set globally. Every colour scale is written on its
figure, and no fact is told by colour alone.
"""

from zfnet_jax.viz.evolution import evolution_grid, motion_chart
from zfnet_jax.viz.features import feature_maps, first_layer_filters
from zfnet_jax.viz.projections import (
    display_projections,
    heat_map,
    image_patches,
    outside,
    overlay,
    projection_grid,
)
from zfnet_jax.viz.sheet import display, save_figure
from zfnet_jax.viz.top_features import top_features
from zfnet_jax.viz.training import confusion_matrix, prediction_grid, training_curves

__all__ = [
    "confusion_matrix",
    "display",
    "display_projections",
    "evolution_grid",
    "feature_maps",
    "first_layer_filters",
    "heat_map",
    "image_patches",
    "motion_chart",
    "outside",
    "overlay",
    "prediction_grid",
    "projection_grid",
    "save_figure",
    "top_features",
    "training_curves",
]
