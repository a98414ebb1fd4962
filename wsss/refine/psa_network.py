"""The network of PSA, its training crop and its training.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation" (PSA), CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as V

from wsss.backbones.base import Backbone, load_weights, read_state_dict
from wsss.backbones.frozen_norm import freeze_norms
from wsss.backbones.resnet38 import ResNet38Body
from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochSet, Sample
from wsss.data.photographs import load_image
from wsss.data.transforms import normalize, to_tensor
from wsss.errors import WsssError
from wsss.hosts.base import groups
from wsss.hosts.optimizer import OptimizerSettings, build_optimizer
from wsss.maps.files import read_class_maps
from wsss.refine.affinity import affinity_labels, pair_loss
from wsss.refine.paths import path_index
from wsss.refine.psa import READINGS, STRIDE, cell_labels, pair_affinity
from wsss.run.callbacks import log_losses
from wsss.settings import Below1, Count, NotNegative, Positive, settings

WIDTHS = (64, 128, 256)  # of the three features, side by side
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}


@settings
class PSAOptimizer:
    """SGD with the poly schedule per step.

    Attributes:
        lr: rate of the body; the layers on it take ten times that.
        momentum: SGD's.
        weight_decay: SGD's.
        poly_power: of lr (1 - step / steps) ^ power.
    """

    lr: Positive = 0.01
    momentum: Below1 = 5e-4
    weight_decay: NotNegative = 5e-4
    poly_power: Positive = 0.9


@settings
class PSASettings:
    """Training of PSA.

    Attributes:
        network: the body: ResNet38d as published, or the network of the group `backbone`.
        weights: file with the initial weights of ResNet38d, as PSA's authors distribute them;
            None: from nothing.
        radius: pairs are closer than this many cells of the stride-8 grid.
        batch_size: over all processes together.
        max_epochs: length of the training.
        crop_size: side of the training crop, pixels; a multiple of 8.
        gradient_clip_val: norm; None: not clipped.
        optimizer: how it learns.
    """

    network: Literal["resnet38d", "backbone"] = "resnet38d"
    weights: str | None = None
    radius: Annotated[int, Ge(2)] = 5
    batch_size: Count = 8
    max_epochs: Count = 5
    crop_size: Annotated[int, Ge(STRIDE), MultipleOf(STRIDE)] = 448
    gradient_clip_val: Positive | None = None
    optimizer: PSAOptimizer = PSAOptimizer()


class Body(Protocol):
    """What features are taken of: three depths at stride 8."""

    tap_channels: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def taps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C_k, h, w) of normalized images (B, 3, H, W)."""
        ...


class BackboneBody(nn.Module):
    """The last three stages of any backbone, brought to the grid of the first of them.

    Args:
        backbone: its second stage has stride 8.

    Raises:
        WsssError: it has another stride.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if backbone.strides[1] != STRIDE:
            raise WsssError(
                f"refine.psa.network=backbone: the second stage must have stride {STRIDE}, this "
                f"one has {backbone.strides[1]}"
            )
        self.backbone = backbone
        self.mean, self.std = backbone.mean, backbone.std
        _, first, second, third = backbone.channels
        self.tap_channels = (first, second, third)

    def taps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three features (B, C_k, h, w) of normalized images (B, 3, H, W)."""
        _, first, second, third = self.backbone(image)
        size = first.shape[-2:]
        second, third = (
            F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            for x in (second, third)
        )
        return first, second, third


class PSANetwork(nn.Module):
    """Features whose distance says whether two pixels belong together.

    With ResNet38d as the body 106,484,032 parameters. Its first two groups of blocks and all batch
    normalization are frozen.

    Args:
        body: ResNet38d's, or that of a backbone, frozen as its own settings say.
    """

    def __init__(self, body: ResNet38Body | BackboneBody) -> None:
        super().__init__()
        self.body = body
        self.f8_3, self.f8_4, self.f8_5 = (
            nn.Conv2d(inputs, width, 1, bias=False)
            for inputs, width in zip(body.tap_channels, WIDTHS, strict=True)
        )
        self.f9 = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        if isinstance(body, ResNet38Body):
            freeze_norms(body)
            for part in (body.conv1a, body.b2, body.b2_1, body.b2_2):
                part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> PSANetwork:
        """As `nn.Module.train`; ResNet38d's batch normalization keeps its stored statistics."""
        super().train(mode)
        if isinstance(self.body, ResNet38Body):
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, 448, H / 8, W / 8) of normalized images (B, 3, H, W)."""
        layers = (self.f8_3, self.f8_4, self.f8_5)
        taps = self.body.taps(image)
        narrow = [F.elu(layer(tap)) for layer, tap in zip(layers, taps, strict=True)]
        return F.elu(self.f9(torch.cat(narrow, dim=1)))

    def head_parameters(self) -> list[nn.Parameter]:
        """Weights of the four layers on the body."""
        return [p for name, p in self.named_parameters() if not name.startswith("body.")]

    def body_parameters(self) -> list[nn.Parameter]:
        """Weights of the body that learn."""
        return [p for p in self.body.parameters() if p.requires_grad]


def load_published(network: PSANetwork, weights: str | Path) -> None:
    """Fill a network on ResNet38d with a published file's weights, which have names of their own.

    Args:
        network: the network to fill.
        weights: file of a trained PSA network, or of a classifier on the same body: the layers on
            the body then stay as they were initialized.

    Raises:
        WsssError: the file is missing or broken, or of another network.
    """
    state = {n.removeprefix("module."): v for n, v in read_state_dict(weights).items()}
    named = {
        name if name.startswith(("f8_", "f9.")) else f"body.{name}": value
        for name, value in state.items()
    }
    own = network.state_dict()
    head = {n: v for n, v in own.items() if not n.startswith("body.") and n not in named}
    try:
        load_weights(network, {**named, **head}, str(weights), ignore=("body.fc8",))
    except WsssError as error:
        raise WsssError(str(error).replace("backbone", "refine.psa", 1)) from error


@dataclass(frozen=True)
class PSACrop:
    """The training crop of PSA: color jitter, random padded square, mirrored or not; no scaling.

    Attributes:
        side: side of the square, pixels; a multiple of 8.
        mean: mean per channel in [0, 1].
        std: standard deviation per channel in [0, 1].
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(
        self,
        image: np.ndarray,
        cautious: np.ndarray,
        generous: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Crop an image and both its readings alike.

        Args:
            image: (H, W, 3) uint8 RGB.
            cautious: (K + 1, H, W) posteriors.
            generous: likewise.
            rng: where all of the crop's randomness comes from.

        Returns:
            The normalized crop (3, S, S), zeros where there is no image, and the labels of its
            cells (S / 8, S / 8), 255 there; see `cell_labels`.
        """
        pixels = normalize(jitter(to_tensor(image), rng), self.mean, self.std)
        layers = torch.cat([pixels, torch.from_numpy(cautious), torch.from_numpy(generous)])
        square = torch.zeros(len(layers), self.side, self.side)
        source, target = [], []
        for length in image.shape[:2]:
            offset = int(rng.integers(0, abs(length - self.side), endpoint=True))
            inside, whole = slice(offset, offset + min(length, self.side)), slice(None)
            source.append(inside if length > self.side else whole)
            target.append(whole if length > self.side else inside)
        square[:, target[0], target[1]] = layers[:, source[0], source[1]]
        if rng.random() < 0.5:
            square = square.flip(-1)
        crop, *readings = square.split([3, len(cautious), len(generous)])
        return crop.contiguous(), cell_labels(readings[0], readings[1])


def jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue changed at random, in random order; uint8."""
    for name in rng.permutation(list(JITTER)):
        amount = JITTER[name]
        if name == "hue":
            image = V.adjust_hue(image, float(rng.uniform(-amount, amount)))
        else:
            change = getattr(V, f"adjust_{name}")
            image = change(image, float(rng.uniform(1 - amount, 1 + amount)))
    return image


class PosteriorSet(EpochSet):
    """Training samples of PSA: `image` (3, S, S) and `target` (S / 8, S / 8), see `PSACrop`.

    Args:
        image_set: gives the image files; its masks are never read.
        names: the images.
        posteriors: folder of the files of both readings, NAME.npz.
        crop: the training crop.
        seed: seed of the crops.
    """

    def __init__(
        self, image_set: ImageSet, names: Sequence[str], posteriors: Path, crop: PSACrop, seed: int
    ) -> None:
        super().__init__(image_set, names, crop, seed)  # type: ignore[arg-type]
        self.posteriors, self.psa_crop = posteriors, crop

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample `index` as `epoch` sees it, for key = (epoch, index)."""
        epoch, index = key
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        path = self.posteriors / f"{name}.npz"
        readings = read_class_maps(path).maps
        if any(readings[kind].shape[1:] != image.shape[:2] for kind in READINGS):
            raise WsssError(f"{path}: is of another image size; delete it, run stage=psa_labels")
        rng = np.random.default_rng([self.seed, epoch, index])
        cautious, generous = (readings[kind] for kind in READINGS)
        crop, labels = self.psa_crop(image, cautious, generous, rng)
        return {"image": crop, "target": labels, "name": name}


class PSAModule(pl.LightningModule):
    """Trains the network from the labels of cells.

    Args:
        network: the network.
        radius: pairs are closer than this.
        optimizer: how it learns.
    """

    def __init__(self, network: PSANetwork, radius: int, optimizer: PSAOptimizer) -> None:
        super().__init__()
        self.network = network
        self.index = path_index(radius)
        self.optimizer_options = optimizer

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Background and foreground pairs weigh a quarter each, pairs of two classes a half."""
        affinity = pair_affinity(self.network(batch["image"]), self.index)
        losses = pair_loss(affinity, affinity_labels(batch["target"], self.index))
        return log_losses(self, losses, len(affinity), factor=0.5)

    def configure_optimizers(self) -> Any:
        """SGD, ten times the rate for the layers on the body, and the poly schedule per step."""
        o, network = self.optimizer_options, self.network
        layers = groups(
            ("body", network.body_parameters(), o.lr),
            ("head", network.head_parameters(), 10 * o.lr),
        )
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(
            layers,
            OptimizerSettings(
                lr=o.lr,
                head_lr=10 * o.lr,
                momentum=o.momentum,
                weight_decay=o.weight_decay,
                poly_power=o.poly_power,
            ),
            steps,
        )


def padded_features(network: PSANetwork, image: Tensor) -> Tensor:
    """Features of a whole image, padded with zeros at the right and below to a multiple of 8.

    Args:
        network: in evaluation mode.
        image: (3, H, W), normalized.

    Returns:
        (448, ceil(H / 8), ceil(W / 8)) float32.
    """
    height, width = image.shape[-2:]
    feature: Tensor = network(F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))[None])
    return feature[0].float()
