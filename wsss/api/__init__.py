"""The program from Python: finished models, predictions, scores, class-map files."""

from wsss.api.files import load, save
from wsss.api.hub import pull, push
from wsss.api.models import Model, SeedModel, SegmentationModel
from wsss.api.prediction import Prediction
from wsss.api.scores import Evaluation, evaluate, read_maps
from wsss.build.blueprint import SeedUse

__all__ = [
    "Evaluation",
    "Model",
    "Prediction",
    "SeedModel",
    "SeedUse",
    "SegmentationModel",
    "evaluate",
    "load",
    "pull",
    "push",
    "read_maps",
    "save",
]
