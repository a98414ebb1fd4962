"""Backbones: four stage features, nothing of Lightning."""

from wsss.backbones.base import Backbone
from wsss.backbones.resnet import ResNet
from wsss.backbones.small import SmallResNet
from wsss.backbones.timm import Timm

__all__ = ["Backbone", "ResNet", "SmallResNet", "Timm"]
