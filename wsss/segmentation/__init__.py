"""The segmentation network that is trained on pseudo masks."""
