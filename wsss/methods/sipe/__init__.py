"""SIPE: self-supervised image-specific prototype exploration."""
