"""A method: what supervises or replaces the class maps of a host, by prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss.data.datamodule import Sample, WholeSet
from wsss.hosts.base import Host, Seen


class Network(Protocol):
    """What a branch may ask of the shell around it, `wsss.methods.network.SeedNetwork`."""

    host: Host
    training: bool

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def __call__(self, images: Tensor, label: Tensor, given: Tensor | None = None) -> Seen:
        """What the host sees in normalized images (B, 3, H, W) with image labels (B, N)."""
        ...

    def see_pair(
        self, image: Tensor, label: Tensor, given: Tensor | None = None
    ) -> tuple[Seen, Tensor]:
        """An image (3, H, W) and its mirror image: what is seen, and the CAM M (1, N, h, w)."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As `nn.Module.train`."""
        ...


class Branch(nn.Module):
    """A method as a branch on any host. It knows nothing of the host beyond what that has seen.

    Attributes:
        Settings: type of the options in the group `method`, without `name`. Those under `test`
            act when maps are made; a training does not depend on them.
        kinds: the kinds of map that `maps` gives, in order, the method's own last; the value says
            whether the kind has a background channel of its own, which stands first.
        host_weight: factor on the host's losses.
        trains_host: whether its losses, or `host_weight`, act on what the host learns.
        name: among `Several`; empty for a method alone.
    """

    Settings: ClassVar[type]

    kinds: dict[str, bool]
    host_weight: float = 1.0
    trains_host: bool = True
    name: str = ""

    def __init__(
        self, options: Any, channels: Sequence[int], num_classes: int, seed: int = 0
    ) -> None:
        """Keep what every branch has.

        Args:
            options: an instance of `Settings`.
            channels: channels of the host's feature maps, the last one of f.
            num_classes: foreground classes N.
            seed: seed of all that it draws after it is built.
        """
        super().__init__()
        self.options, self.num_classes, self.seed = options, num_classes, seed

    def losses(self, seen: Seen, cam: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss terms of a training batch by name, already weighted.

        Args:
            seen: features and raw class maps of the batch.
            cam: the host's normalized class maps M (B, N, h, w) in [0, 1], with their gradient.
            batch: `label` (B, N), `valid` (B, H, W), ...
        """
        raise RuntimeError(f"{type(self).__name__} must implement losses")

    def maps(self, seen: Seen, cam: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Class maps of one image at one scale, before fusion over scales.

        Args:
            seen: the image and its mirror image, a batch of 2.
            cam: the host's normalized class maps of both together, (1, N, h, w) in [0, 1].
            label: image label (N,), 1 for present classes.

        Returns:
            For each of `kinds`: un-normalized maps of the K present classes in ascending order,
            (K, h, w), or (K+1, h, w) with the background first where the kind has one.
        """
        raise RuntimeError(f"{type(self).__name__} must implement maps")

    def learners(self) -> list[list[nn.Parameter]]:
        """Its parameters in groups that do not act on one another in a training."""
        return [list(self.parameters())]

    def callbacks(self) -> list[pl.Callback]:
        """Callbacks that a training needs."""
        return []

    def before_maps(self, network: Network, images: WholeSet) -> None:
        """Called once on every process before map making; state may be refreshed here.

        Args:
            network: host and branch.
            images: the training images, whole and at scale 1, in the order of their list.
        """

    def notes(self) -> dict[str, Any]:
        """What the manifest of the maps should say about how they were made."""
        return {}

    def training_figures(self, metrics: Path, folder: Path) -> list[Path]:
        """Draw what a training's `metrics.csv` shows into an existing folder; returns the files."""
        return []

    def figures(self, network: Network, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Draw the method's own figures into an existing folder; returns the files.

        Args:
            network: host and branch, trained.
            samples: samples of `WholeSet` with labels and `picture`, the first scale being 1.
            folder: where the files go.
        """
        return []
