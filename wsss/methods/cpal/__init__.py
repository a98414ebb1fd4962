"""CPAL: context prototype-aware learning."""
