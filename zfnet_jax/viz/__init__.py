"""Figures from arrays; nothing here knows a model.

`layout` puts boxes in boxes, `charts` draws measured values, `patches` prepares pixels
for display. The other modules draw one figure each and are named after the command that
writes it.
"""
