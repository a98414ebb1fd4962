"""Weakly supervised semantic segmentation from image labels."""

__version__ = "0.1.0"
