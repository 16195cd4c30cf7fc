"""Arrays to figures: training, predictions, feature maps, projections, heat maps.

Nothing here knows a model: arrays and names go in, a matplotlib `(Figure, Axes)` comes
out, and nothing is shown, cached or set globally. Every colour scale is written on its
figure, and no fact is told by colour alone.
"""

from zfnet_jax.viz.correspondence import correspondence_chart, masked_images
from zfnet_jax.viz.features import feature_maps
from zfnet_jax.viz.occlusion import occlusion_panels
from zfnet_jax.viz.predictions import top_classes
from zfnet_jax.viz.probe import accuracy_by_layer
from zfnet_jax.viz.projections import (
    display_projections,
    heat_map,
    image_patches,
    outside,
    overlay,
    projection_grid,
    show_projections,
)
from zfnet_jax.viz.sanity import compared_pictures, similarity_curves
from zfnet_jax.viz.sheet import display, figure_bytes, save_figure

__all__ = [
    "accuracy_by_layer",
    "compared_pictures",
    "correspondence_chart",
    "display",
    "display_projections",
    "feature_maps",
    "figure_bytes",
    "heat_map",
    "image_patches",
    "masked_images",
    "occlusion_panels",
    "outside",
    "overlay",
    "projection_grid",
    "save_figure",
    "show_projections",
    "similarity_curves",
    "top_classes",
]
