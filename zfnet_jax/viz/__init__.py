"""Figures from arrays; nothing here knows a model.

`layout` puts boxes in boxes, `charts` draws measured values, `patches` prepares pixels
for display. The other modules draw one figure each and are named after the command that
writes it. Boxes in images are top, left, bottom and right in pixels, as [..., 4];
`contrast` is the percentile of the magnitudes that is shown as black and white.
"""
