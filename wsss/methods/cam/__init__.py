"""Plain CAM."""
