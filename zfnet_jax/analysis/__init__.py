"""Analyses of what a network has learned, one module each."""
