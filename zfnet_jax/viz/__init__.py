"""Arrays to figures: training, predictions, feature maps, projections, heat maps.

Nothing here knows a model: arrays and names go in, a matplotlib `(Figure, Axes)` comes
out, and nothing is shown, cached or set globally. Every colour scale is written on its
figure, and no fact is told by colour alone.
"""

from zfnet_jax.viz.ablation import ablation_chart
from zfnet_jax.viz.evolution import evolution_grid, motion_chart
from zfnet_jax.viz.features import feature_maps, first_layer_filters
from zfnet_jax.viz.first_layer import filter_banks, shares_chart
from zfnet_jax.viz.predictions import top_classes
from zfnet_jax.viz.projections import (
    display_projections,
    heat_map,
    image_patches,
    outside,
    overlay,
    projection_grid,
    show_projections,
)
from zfnet_jax.viz.sheet import display, figure_bytes, save_figure
from zfnet_jax.viz.training import confusion_matrix, prediction_grid, training_curves

__all__ = [
    "ablation_chart",
    "confusion_matrix",
    "display",
    "display_projections",
    "evolution_grid",
    "feature_maps",
    "figure_bytes",
    "filter_banks",
    "first_layer_filters",
    "heat_map",
    "image_patches",
    "motion_chart",
    "outside",
    "overlay",
    "prediction_grid",
    "projection_grid",
    "save_figure",
    "shares_chart",
    "show_projections",
    "top_classes",
    "training_curves",
]
