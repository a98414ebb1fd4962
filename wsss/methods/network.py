"""The Lightning shell around a host and a method: the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss.data.datamodule import WholeSet
from wsss.errors import WsssError
from wsss.hosts.base import Host, Seen, groups
from wsss.hosts.optimizer import OptimizerSettings, build_optimizer
from wsss.hosts.released import CLASSES
from wsss.methods.base import Branch
from wsss.run.callbacks import BLUEPRINT, log_losses


class SeedNetwork(pl.LightningModule):
    """A network that learns from image labels and answers with class maps.

    Args:
        host: what makes class maps.
        branch: the method on it; None: the host alone.
        optimizer: how both learn.
        memory_format: `channels_last` or `contiguous`; the layout of images and weights.

    Attributes:
        kinds: the kinds of map that `maps` gives, in order, the method's own last; the value says
            whether the kind has a background channel of its own.
        blueprint: what it was built from, kept in the checkpoint; None: it was put together by
            hand.
    """

    def __init__(
        self,
        host: Host,
        branch: Branch | None,
        optimizer: OptimizerSettings,
        memory_format: str = "contiguous",
    ) -> None:
        super().__init__()
        self.host, self.branch = host, branch
        self.optimizer_options = optimizer
        self.blueprint: dict[str, Any] | None = None
        self.kinds = {**host.kinds, **(branch.kinds if branch else {})}
        for kind in host.kinds.keys() & (branch.kinds if branch else {}).keys():
            raise WsssError(
                f"method.branches.{kind}: the host's maps have this name, choose another"
            )
        channels_last = memory_format == "channels_last"
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.host.trains or self.branch is not None

    def forward(self, images: Tensor, label: Tensor, given: Tensor | None = None) -> Seen:
        """What the host sees in normalized images (B, 3, H, W) with image labels (B, N).

        Class maps of an earlier run (B, N, h, w) come with it as `extra["given"]`.
        """
        seen = self.host(images.contiguous(memory_format=self.layout), label)
        return seen if given is None else seen.with_extra(given=given)

    def see_pair(
        self, image: Tensor, label: Tensor, given: Tensor | None = None
    ) -> tuple[Seen, Tensor]:
        """An image (3, H, W) and its mirror image: what is seen, and the CAM M (1, N, h, w)."""
        seen = self._look(image, label, given)
        return seen, self.host.general_pair(seen)

    def _look(self, image: Tensor, label: Tensor, given: Tensor | None) -> Seen:
        if not self.host.mirrors:
            return self(image[None], label[None]).with_mirror()
        pair = None if given is None else torch.stack([given, given.flip(-1)])
        return self(torch.stack([image, image.flip(-1)]), label[None].expand(2, -1), pair)

    def maps(self, image: Tensor, label: Tensor, given: Tensor | None = None) -> dict[str, Tensor]:
        """Class maps of one image at one scale, of each of `kinds`, before fusion over scales.

        Args:
            image: (3, H, W), normalized.
            label: (N,), 1 for present classes.
            given: class maps of an earlier run, (N, h, w), where the host reads them.

        Returns:
            (K, h, w) of the K present classes in ascending order, or (K+1, h, w) with the
            background first where the kind has one.
        """
        if self.branch is None:
            return self.host.maps(self._look(image, label, given), label)
        seen, cam = self.see_pair(image, label, given)
        own = self.branch.maps(seen, cam, label)
        refined = {kind: self.host.refine(seen, values, label) for kind, values in own.items()}
        return {**self.host.maps(seen, label), **refined}

    def whole_maps(self, sample: Mapping[str, Any], stride: int) -> dict[str, Tensor]:
        """Class maps of a whole image over all its scales.

        Args:
            sample: as `WholeSet` makes it: `images`, `label`, `size` and what the host reads.
            stride: pixels of the photograph per cell of the maps.

        Returns:
            Of each of `kinds` (K, h, w) or (K+1, h, w), float32 in [0, 1].
        """
        height, width = sample["size"].tolist()
        grid = ((height - 1) // stride + 1, (width - 1) // stride + 1)
        label, given = sample["label"], sample.get("maps")
        with torch.set_grad_enabled(self.host.needs_grad):
            by_scale = [self.maps(image, label, given) for image in sample["images"]]
        return {
            kind: self.host.fuse(kind, [scale[kind].detach() for scale in by_scale], grid, sample)
            for kind in self.kinds
        }

    def before_maps(self, images: WholeSet) -> None:
        """Called once on every process before map making, with the training images."""
        if self.branch is not None:
            self.branch.before_maps(self, images)
        self.host.folded()

    def notes(self) -> dict[str, Any]:
        """What the manifest of the maps should say about how they were made."""
        return {**self.host.notes(), **(self.branch.notes() if self.branch else {})}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what it is and what the class ids mean, for whoever has the file alone."""
        checkpoint[CLASSES] = list(self.host.classes)
        checkpoint[BLUEPRINT] = self.blueprint

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callbacks of the method come with it."""
        return self.branch.callbacks() if self.branch else []

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """The sum of the host's and the method's loss terms; all are logged."""
        seen = self(batch["image"], batch["label"], batch.get("maps"))
        losses: dict[str, Tensor] = {}
        if self.host.trains:
            weight = self.branch.host_weight if self.branch else 1.0
            own = self.host.losses(seen, batch)
            losses = own if weight == 1 else {name: weight * term for name, term in own.items()}
        if self.branch is not None:
            losses = {**losses, **self.branch.losses(seen, self.host.general(seen), batch)}
        return log_losses(self, losses, batch["image"].shape[0])

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all that act on one another.

        What does not train the host is clipped apart from it: with one norm over both the host
        would take smaller steps than without it.
        """
        if gradient_clip_val is None:
            return
        parts = [list(self.host.parameters())]
        if self.branch is not None:
            apart = self.branch.learners()
            parts = [sum(apart, parts[0])] if self.branch.trains_host else [*parts, *apart]
        for part in parts:
            nn.utils.clip_grad_norm_(part, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule over all steps of this training."""
        options = self.optimizer_options
        found: list[dict[str, Any]] = []
        if self.host.trains:
            found += self.host.parameter_groups(options.lr, options.head_lr)
        if self.branch is not None:
            found += groups(("branch", self.branch.parameters(), options.head_lr))
        if not found:
            raise WsssError(
                "nothing learns: neither this host nor, without a weight on its loss, this method"
            )
        steps = int(self.trainer.estimated_stepping_batches)
        return build_optimizer(found, options, steps, steps / max(self.trainer.max_epochs or 1, 1))
