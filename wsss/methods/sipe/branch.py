"""SIPE as a branch: side convolutions, GSC in training, IS-CAM at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from wsss.data.datamodule import Sample
from wsss.errors import WsssError
from wsss.hosts.base import Seen, add_mirror
from wsss.maps.functional import add_background, class_valid_mask, normalize_cam, resize_maps
from wsss.maps.structure import hierarchical_feature
from wsss.methods.base import Branch, Network
from wsss.methods.sipe.functional import Exploration, estimate_background, explore, gsc_loss
from wsss.settings import Count, NotNegative, Share, settings

Classes = Literal["all", "present"]


@settings
class SIPETest:
    """What holds when maps are made.

    Attributes:
        attenuation: factor on the background's score when seeds are located.
        structure: feature whose correlations are the structure: f or g.
        background_classes: classes whose maximum the background map leaves over.
        seed_classes: classes that compete for a pixel; one won by an absent class is no seed.
    """

    attenuation: NotNegative = 0.5
    structure: Literal["f", "g"] = "g"
    background_classes: Classes = "all"
    seed_classes: Classes = "all"


@settings
class SIPESettings:
    """The options of SIPE; the defaults are those of the released code.

    Attributes:
        attenuation: factor on the background's score when seeds are located in training.
        features: g, the feature of prototypes and IS-CAM: `hierarchical` (side outputs of all
            feature maps) or `semantic` (f, detached; then the IS side trains nothing).
        structure: feature whose correlations are the structure in training: f or g.
        background: `prototype`: the background has its own prototype and map; `estimated`: its map
            is 1 - max of the normalized IS-CAMs; `threshold`: none, GSC compares the foreground
            only and evaluation takes a constant, as for the plain CAM.
        seeds: `structure` (the method), `argmax` or `threshold` of the class maps.
        seed_threshold: for seeds=threshold.
        gsc_weight: factor on L_gsc; 0 leaves the loss out.
        gsc_classes: channels in L_gsc's mean: all, or background and present classes.
        detach_cam: whether L_gsc's CAM side is a constant.
        side_channels: output channels of the side convolution of each feature map.
        test: what holds when maps are made.
    """

    attenuation: NotNegative = 0.5
    features: Literal["hierarchical", "semantic"] = "hierarchical"
    structure: Literal["f", "g"] = "f"
    background: Literal["prototype", "estimated", "threshold"] = "prototype"
    seeds: Literal["structure", "argmax", "threshold"] = "structure"
    seed_threshold: Share = 0.3
    gsc_weight: NotNegative = 1.0
    gsc_classes: Classes = "all"
    detach_cam: bool = False
    side_channels: tuple[Count, ...] = (128, 128, 256, 256)
    test: SIPETest = SIPETest()


class Explored(NamedTuple):
    """One image at one scale, image and mirror combined: what map making and figures need."""

    maps: Tensor
    """M (1, N+1, h, w), class maps with background on the working grid."""
    structure: Tensor
    """u (1, C, h, w), the feature whose correlations are the structure."""
    found: Exploration
    """Seeds, prototypes and IS-CAM."""


class SIPE(Branch):
    """Self-supervised image-specific prototype exploration (Chen et al., CVPR 2022).

    The working grid is that of the feature before the last. L_gsc has two sides: the CAM side
    trains the host (unless `detach_cam`); the IS side trains only the side convolutions, because
    their inputs are detached.
    """

    Settings = SIPESettings
    options: SIPESettings

    def __init__(
        self, options: SIPESettings, channels: Sequence[int], num_classes: int, seed: int = 0
    ) -> None:
        """Build the side convolutions; arguments as in `Branch`.

        Raises:
            WsssError: `side_channels` does not fit the host's feature maps.
        """
        super().__init__(options, channels, num_classes, seed)
        self.kinds = {"is_cam": options.background != "threshold"}
        self.trains_host = options.gsc_weight > 0 and not options.detach_cam
        self.sides = nn.ModuleList()
        if options.features == "hierarchical":
            self.sides.extend(side_convolutions(channels, options.side_channels))
        if options.gsc_weight == 0:
            self.sides.requires_grad_(False)

    def losses(self, seen: Seen, cam: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted GSC loss of a training batch (SIPE eq. 10)."""
        options = self.options
        if options.gsc_weight == 0:
            return {}
        label = batch["label"]
        valid_mask = class_valid_mask(batch["valid"], label, seen.grid)
        general = resize_maps(add_background(cam), seen.grid, align_corners=True) * valid_mask
        spaces = self._spaces(seen)
        found = explore(
            general,
            spaces[options.structure],
            spaces["g"],
            valid_mask,
            options.attenuation,
            options.seeds,
            options.seed_threshold,
        )
        if options.background == "estimated":
            specific = estimate_background(found.is_cam)
        else:
            specific = normalize_cam(found.is_cam)
        if options.detach_cam:
            general = general.detach()
        counted = None
        if options.gsc_classes == "present":
            counted = torch.cat([torch.ones_like(label[:, :1]), label], dim=1)
        if options.background == "threshold":
            general, specific = general[:, 1:], specific[:, 1:]
            counted = None if counted is None else counted[:, 1:]
        return {"gsc": options.gsc_weight * gsc_loss(general, specific, counted)}

    @torch.no_grad()
    def maps(self, seen: Seen, cam: Tensor, label: Tensor) -> dict[str, Tensor]:
        """IS-CAM of an image's present classes at one scale, not normalized.

        (K+1, h, w), background first, or (K, h, w) with background="threshold".
        """
        is_cam = self.explore(seen, cam, label).found.is_cam
        if self.options.background == "estimated":
            is_cam = estimate_background(is_cam)
        present = label > 0
        kept = torch.cat([torch.full_like(present[:1], self.kinds["is_cam"]), present])
        return {"is_cam": is_cam[0, kept]}

    @torch.no_grad()
    def explore(self, seen: Seen, cam: Tensor, label: Tensor) -> Explored:
        """Exploration of an image and its mirror image, whose features are added."""
        test = self.options.test
        spaces = {name: add_mirror(feature) for name, feature in self._spaces(seen).items()}
        present = label.to(cam.dtype)[None, :, None, None]
        present_cam = cam * present
        left_over = present_cam if test.background_classes == "present" else cam
        competing = present_cam if test.seed_classes == "present" else cam
        maps = torch.cat([add_background(left_over)[:, :1], competing], dim=1)
        maps = resize_maps(maps, seen.grid, align_corners=True)
        structure = spaces[test.structure]
        found = explore(
            maps,
            structure,
            spaces["g"],
            torch.cat([torch.ones_like(present[:, :1]), present], dim=1),
            test.attenuation,
            self.options.seeds,
            self.options.seed_threshold,
        )
        return Explored(maps, structure, found)

    def figures(self, network: Network, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Draw CAM, seeds, IS-CAM and structure maps of the samples, see `figures.draw`."""
        from wsss.methods.sipe.figures import ExploredPicture, draw

        def explored(sample: Sample) -> ExploredPicture:
            image, label = (x.to(network.device) for x in (sample["images"][0], sample["label"]))
            given = sample["maps"].to(network.device) if "maps" in sample else None
            seen, cam = network.see_pair(image, label, given)
            maps, structure, found = self.explore(seen, cam, label)
            return ExploredPicture(
                sample["name"],
                sample["picture"].numpy(),
                label,
                maps[0],
                found.seeds[0],
                found.is_cam[0],
                structure[0],
            )

        return draw(map(explored, samples), folder, network.host.classes)

    def _spaces(self, seen: Seen) -> dict[str, Tensor]:
        """The features f and g on the working grid; both are detached from the host."""
        f = resize_maps(seen.features[-1].detach(), seen.grid, align_corners=False)
        if self.options.features == "semantic":
            return {"f": f, "g": f}
        sides = [side(x.detach()) for side, x in zip(self.sides, seen.features, strict=True)]
        return {"f": f, "g": hierarchical_feature(sides, seen.grid)}


def side_convolutions(channels: Sequence[int], widths: Sequence[int]) -> list[nn.Conv2d]:
    """A 1x1 convolution without bias for each feature map of the host (SIPE Fig. 4).

    Raises:
        WsssError: there is not one width for each feature map.
    """
    if len(widths) != len(channels):
        raise WsssError(
            f"method.side_channels={list(widths)}: give one width for each of the "
            f"{len(channels)} feature maps of the host"
        )
    return [
        nn.Conv2d(inputs, width, 1, bias=False)
        for inputs, width in zip(channels, widths, strict=True)
    ]
