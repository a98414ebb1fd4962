"""AMN: a classifier of pixels that learns from the label maps of a first run."""
