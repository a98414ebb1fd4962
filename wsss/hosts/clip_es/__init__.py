"""CLIP-ES: class maps from a frozen CLIP, without any training (Lin et al., CVPR 2023)."""
