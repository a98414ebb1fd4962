"""The network of IRN: class boundaries and displacements from a frozen backbone.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN),
CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.data.datamodule import WholeSet
from wsss.data.transforms import check_range, resize_labels
from wsss.errors import WsssError
from wsss.hosts.base import groups
from wsss.hosts.optimizer import OptimizerSettings, build_optimizer
from wsss.refine.affinity import affinity_labels, affinity_loss, displacement_loss
from wsss.refine.paths import path_index
from wsss.run.callbacks import log_losses
from wsss.run.progress import track
from wsss.settings import Below1, Count, NotNegative, Positive, settings

GRID_STRIDE = 4
MULTIPLE = 16  # sizes of images that all five features divide evenly


class _Head(nn.Module):
    """1x1 convolution, group normalization, bilinear resize by a factor, ReLU."""

    def __init__(self, channels: int, width: int, groups: int, factor: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.GroupNorm(groups, width)
        self.factor = factor

    def forward(self, feature: Tensor, size: torch.Size) -> Tensor:
        x = self.norm(self.conv(feature))
        if self.factor != 1:
            x = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return F.relu(x[..., : size[0], : size[1]])


class EdgeDisplacement(nn.Module):
    """Edge and displacement heads on the stem and the four stages of a frozen backbone.

    With a ResNet-50 the edge head has 125,409 parameters, the displacement head 1,269,120.

    Args:
        backbone: any backbone; it is frozen here and always in evaluation mode.
        displacement: whether to have the displacement head. It shares nothing with the edge head,
            and semantic pseudo masks come from edges alone.

    Attributes:
        mean_shift: (2,) mean displacement of the training images, y and x in cells, which is
            subtracted in evaluation mode.
    """

    mean_shift: Tensor

    def __init__(self, backbone: Backbone, displacement: bool = True) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.has_displacement = displacement
        channels = (backbone.stem_channels, *backbone.channels)
        strides = (backbone.stem_stride, *backbone.strides)
        self.edge = nn.ModuleList(
            _Head(c, 32, 4, s / GRID_STRIDE) for c, s in zip(channels, strides, strict=True)
        )
        self.edge_out = nn.Conv2d(5 * 32, 1, 1)
        if displacement:
            coarse = strides[2]
            grids = (GRID_STRIDE, GRID_STRIDE, coarse, coarse, coarse)
            widths, groups = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)
            self.field = nn.ModuleList(
                _Head(c, w, g, s / grid)
                for c, w, g, s, grid in zip(channels, widths, groups, strides, grids, strict=True)
            )
            self.field_merge = _Head(3 * 256, 256, 16, coarse / GRID_STRIDE)
            self.field_last = _Head(64 + 128 + 256, 256, 16, 1)
            self.field_out = nn.Conv2d(256, 2, 1, bias=False)
        self.register_buffer("mean_shift", torch.zeros(2))
        self.train(self.training)

    def train(self, mode: bool = True) -> EdgeDisplacement:
        """As `nn.Module.train`; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def heads_state(self) -> dict[str, Tensor]:
        """State dict without the backbone."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """Load what `heads_state` gave.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        own = self.state_dict()
        self.load_state_dict({**{k: own[k] for k in own if k.startswith("backbone.")}, **state})

    def edge_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the edge head."""
        return [*self.edge.parameters(), *self.edge_out.parameters()]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the displacement head; none where it is off."""
        return [p for name, p in self.named_parameters() if name.startswith("field")]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Edge logits and displacements of normalized images.

        Args:
            image: (B, 3, H, W), H and W multiples of 16.

        Returns:
            (B, H/4, W/4) edge before the sigmoid, and (B, 2, H/4, W/4) displacement in cells
            (y, x), or None where that head is off.

        Raises:
            WsssError: if the size is no multiple of 16.
        """
        if image.shape[-2] % MULTIPLE or image.shape[-1] % MULTIPLE:
            raise WsssError(
                f"IRN: images of {image.shape[-2]} x {image.shape[-1]} pixels; both sides must be "
                f"multiples of {MULTIPLE}"
            )
        with torch.no_grad():
            taps = self.backbone.forward_with_stem(image)
        grid = taps[1].shape[-2:]
        merged = torch.cat([h(x, grid) for h, x in zip(self.edge, taps, strict=True)], dim=1)
        edge = self.edge_out(merged)[:, 0]
        if not self.has_displacement:
            return edge, None
        coarse = taps[2].shape[-2:]
        sizes = (grid, grid, coarse, coarse, coarse)
        d = [h(x, s) for h, x, s in zip(self.field, taps, sizes, strict=True)]
        deep = self.field_merge(torch.cat(d[2:], dim=1), grid)
        field = self.field_out(self.field_last(torch.cat([d[0], d[1], deep], dim=1), grid))
        if not self.training:
            field = field - self.mean_shift.view(1, 2, 1, 1)
        return edge, field


def edge_map(network: EdgeDisplacement, image: Tensor) -> Tensor:
    """Edge probabilities of a whole image of any size, averaged with its mirror image.

    The published code pads to 512 pixels, which cuts larger images. Here the padding (zeros, right
    and bottom) goes to the next multiple of 16.

    Args:
        network: in evaluation mode.
        image: (3, H, W) normalized.

    Returns:
        ((H - 1) // 4 + 1, (W - 1) // 4 + 1) float32 in [0, 1]: the sigmoid of the mean logit.
    """
    height, width = image.shape[-2:]
    pair = F.pad(
        torch.stack([image, image.flip(-1)]), (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    )
    logits = network(pair)[0].float()
    rows, columns = (height - 1) // GRID_STRIDE + 1, (width - 1) // GRID_STRIDE + 1
    straight, mirrored = logits[:, :rows, :columns]
    return torch.sigmoid((straight + mirrored.flip(-1)) / 2)


@settings
class IRNOptimizer:
    """SGD of IRN's heads, with the poly schedule per step.

    Attributes:
        lr_edge: rate of the edge head.
        lr_displacement: rate of the displacement head.
        momentum: SGD's.
        weight_decay: SGD's.
        poly_power: of lr (1 - step / steps) ^ power.
    """

    lr_edge: Positive = 0.1
    lr_displacement: Positive = 1.0
    momentum: Below1 = 1e-4
    weight_decay: NotNegative = 1e-4
    poly_power: Positive = 0.9


@settings
class IRNSettings:
    """Training of IRN.

    Attributes:
        features: frozen features: `pretrained` as published, or the trained `method`'s.
        radius: path radius of the training pairs, cells of the stride-4 grid.
        displacement: whether there is a displacement head; pseudo masks come from edges alone.
        mean_displacement: measure the mean displacement after training.
        batch_size: over all processes together.
        max_epochs: length of the training.
        crop_size: side of the training crop, pixels; a multiple of 16.
        scale: random scale, [smallest, largest].
        gradient_clip_val: norm; None: not clipped.
        optimizer: how the heads learn.
    """

    features: Literal["pretrained", "method"] = "pretrained"
    radius: Annotated[int, Ge(2)] = 10
    displacement: bool = True
    mean_displacement: bool = True
    batch_size: Count = 32
    max_epochs: Count = 3
    crop_size: Annotated[int, Ge(MULTIPLE), MultipleOf(MULTIPLE)] = 512
    scale: tuple[Positive, Positive] = (0.5, 1.5)
    gradient_clip_val: Positive | None = None
    optimizer: IRNOptimizer = IRNOptimizer()

    def __post_init__(self) -> None:
        check_range("refine.irn.scale", self.scale)


class IRNModule(pl.LightningModule):
    """Trains the heads from confident labels.

    Args:
        network: the network.
        radius: path radius of the training pairs, cells.
        optimizer: how the heads learn.
    """

    def __init__(self, network: EdgeDisplacement, radius: int, optimizer: IRNOptimizer) -> None:
        super().__init__()
        self.network = network
        self.index = path_index(radius)
        self.optimizer_options = optimizer

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """(positive + negative) / 2 + (foreground + background displacement) / 2.

        The batch has `image` (B, 3, H, W) and `target` (B, H, W) class ids, 255 unsure.
        """
        edge, field = self.network(batch["image"])
        labels = resize_labels(batch["target"], (edge.shape[-2], edge.shape[-1]))
        pairs = affinity_labels(labels, self.index)
        losses = affinity_loss(edge, pairs, self.index)
        if field is not None:
            shifts = displacement_loss(field, pairs, self.index)
            losses |= {f"displacement_{kind}": loss for kind, loss in shifts.items()}
        return log_losses(self, losses, len(labels), factor=0.5)

    def configure_optimizers(self) -> Any:
        """SGD with a learning rate for each head and the poly schedule per step."""
        o, network = self.optimizer_options, self.network
        heads = groups(
            ("edge", network.edge_parameters(), o.lr_edge),
            ("displacement", network.displacement_parameters(), o.lr_displacement),
        )
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(
            heads,
            OptimizerSettings(
                lr=o.lr_edge,
                head_lr=o.lr_displacement,
                momentum=o.momentum,
                weight_decay=o.weight_decay,
                poly_power=o.poly_power,
            ),
            steps,
        )


@torch.no_grad()
def mean_displacement(
    network: EdgeDisplacement, images: WholeSet, side: int, batch_size: int, device: torch.device
) -> Tensor:
    """Mean displacement (2,) over all images and cells, y and x.

    The published code takes the mean of batch means and drops the last batch; here every image
    counts once.

    Args:
        network: the trained network.
        images: samples at scale 1.
        side: each is cut or zero-padded to a square of this side at its upper left corner.
        batch_size: images of a forward pass.
        device: where to run.
    """
    network.to(device).train()  # evaluation mode would subtract the shift that is sought
    total, count = torch.zeros(2, dtype=torch.float64), 0
    squares: list[Tensor] = []
    for number, sample in enumerate(track(images.loader(), "irn_train: mean displacement"), 1):
        part = sample["images"][0][:, :side, :side]
        squares.append(F.pad(part, (0, side - part.shape[2], 0, side - part.shape[1])))
        if len(squares) == batch_size or number == len(images):
            displacement = network(torch.stack(squares).to(network.mean_shift))[1]
            assert displacement is not None
            total += displacement.double().mean(dim=(2, 3)).sum(dim=0).cpu()
            count += len(squares)
            squares = []
    return (total / max(count, 1)).float()
