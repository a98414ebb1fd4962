"""SIPE as a seed method: side convolutions, GSC in training, IS-CAM at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.errors import WsssError
from wsss.hosts.base import SeedMethod
from wsss.maps.functional import (
    add_background,
    class_valid_mask,
    normalize_cam,
    resize_maps,
)
from wsss.maps.structure import hierarchical_feature
from wsss.methods.sipe.figures import draw
from wsss.methods.sipe.functional import (
    SEED_CHOICES,
    Exploration,
    estimate_background,
    explore,
    gsc_loss,
)

TEST_DEFAULTS: dict[str, Any] = {
    "attenuation": 0.5,
    "structure": "g",
    "background_classes": "all",
    "seed_classes": "all",
}

CHOICES = {
    "features": ("hierarchical", "semantic"),
    "structure": ("f", "g"),
    "background": ("prototype", "estimated", "threshold"),
    "seeds": SEED_CHOICES,
    "gsc_classes": ("all", "present"),
    "test.structure": ("f", "g"),
    "test.background_classes": ("all", "present"),
    "test.seed_classes": ("all", "present"),
}


class Explored(NamedTuple):
    """One image at one scale, image and mirror combined: what map making and figures need."""

    maps: Tensor
    """M (1, N+1, h, w), class maps with background on the working grid."""
    structure: Tensor
    """u (1, C, h, w), the feature whose correlations are the structure."""
    found: Exploration
    """Seeds, prototypes and IS-CAM."""


class SIPE(SeedMethod):
    """Self-supervised image-specific prototype exploration (Chen et al., CVPR 2022).

    The working grid is the third stage's. L = L_cls + gsc_weight * L_gsc. L_gsc has two sides:
    the CAM side trains classifier and backbone (unless `detach_cam`); the IS side trains only the
    side convolutions, because their inputs are detached.
    """

    kinds: ClassVar[dict[str, bool]] = {"cam": False, "is_cam": True}

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Mapping[str, Any],
        test: Mapping[str, Any] | None = None,
        memory_format: str = "contiguous",
        attenuation: float = 0.5,
        features: str = "hierarchical",
        structure: str = "f",
        background: str = "prototype",
        seeds: str = "structure",
        seed_threshold: float = 0.3,
        gsc_weight: float = 1.0,
        gsc_classes: str = "all",
        detach_cam: bool = False,
        side_channels: Sequence[int] = (128, 128, 256, 256),
    ) -> None:
        """Build the side convolutions; defaults are the released code's.

        Args:
            backbone: Network with four stage features.
            num_classes: Number N of foreground classes.
            optimizer: Settings of the optimizer, see `SeedMethod`.
            test: What holds at test time only: `attenuation`, `structure`, `background_classes`
                (classes whose maximum the background map leaves over) and `seed_classes` (classes
                that compete for a pixel; one won by an absent class is no seed).
            memory_format: See `SeedMethod`.
            attenuation: Factor on the background's score when seeds are located in training.
            features: g, the feature of prototypes and IS-CAM: "hierarchical" (side outputs of all
                stages) or "semantic" (f, detached; then the IS side trains nothing).
            structure: Feature whose correlations are the structure in training: "f", the last
                stage's, or "g".
            background: "prototype": the background has its own prototype and map; "estimated": its
                map is 1 - max of the normalized IS-CAMs; "threshold": none, GSC compares the
                foreground only and evaluation takes a constant, as for the plain CAM.
            seeds: "structure" (the method), "argmax" or "threshold" of the class maps.
            seed_threshold: For seeds="threshold".
            gsc_weight: Factor on L_gsc; 0 leaves the loss out.
            gsc_classes: Channels in L_gsc's mean: "all", or background and "present" classes.
            detach_cam: Whether L_gsc's CAM side is a constant.
            side_channels: Output channels of the side convolution of each stage.

        Raises:
            WsssError: If a value makes no sense; the message names its key.
        """
        super().__init__(backbone, num_classes, optimizer, test, memory_format)
        unknown = sorted(set(self.test_options) - set(TEST_DEFAULTS))
        if unknown:
            raise WsssError(
                f"method.test.{unknown[0]} is unknown; known: {', '.join(TEST_DEFAULTS)}"
            )
        self.test_options = {**TEST_DEFAULTS, **self.test_options}
        given = {
            "features": features,
            "structure": structure,
            "background": background,
            "seeds": seeds,
            "gsc_classes": gsc_classes,
            **{f"test.{key}": value for key, value in self.test_options.items()},
        }
        for key, allowed in CHOICES.items():
            if given[key] not in allowed:
                raise WsssError(
                    f"method.{key}={given[key]} is unknown; choose one of {', '.join(allowed)}"
                )
        self.attenuation = float(attenuation)
        self.features, self.structure = features, structure
        self.background, self.seeds = background, seeds
        self.seed_threshold = float(seed_threshold)
        self.gsc_weight, self.gsc_classes = float(gsc_weight), gsc_classes
        self.detach_cam = bool(detach_cam)
        for key, value in (
            ("attenuation", self.attenuation),
            ("gsc_weight", self.gsc_weight),
            ("test.attenuation", float(self.test_options["attenuation"])),
        ):
            if value < 0:
                raise WsssError(f"method.{key} must be 0 or more, got {value}")
        if len(side_channels) != 4 or min(side_channels) < 1:
            raise WsssError(
                "method.side_channels must be four positive numbers, one per stage, "
                f"got {list(side_channels)}"
            )
        if background == "threshold":
            self.kinds = {"cam": False, "is_cam": False}  # type: ignore[misc]
        self.sides = nn.ModuleList(
            nn.Conv2d(inputs, int(outputs), 1, bias=False)
            for inputs, outputs in zip(backbone.channels, side_channels, strict=True)
            if features == "hierarchical"
        )
        self.sides.to(memory_format=self.layout)

    def self_supervision(
        self, features: list[Tensor], activation: Tensor, batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The weighted GSC loss of a training batch (SIPE eq. 10)."""
        if self.gsc_weight == 0:
            return {}
        label = batch["label"]
        size = (features[2].shape[-2], features[2].shape[-1])
        allowed = class_valid_mask(batch["valid"], label, size)
        # Float32 before the division by the maximum: bfloat16 maps would tie in the arg max.
        general = add_background(normalize_cam(activation.float()))
        general = resize_maps(general, size, align_corners=True) * allowed
        spaces = self._spaces(features)
        found = explore(
            general,
            spaces[self.structure],
            spaces["g"],
            allowed,
            self.attenuation,
            self.seeds,
            self.seed_threshold,
        )
        if self.background == "estimated":
            specific = estimate_background(found.is_cam)
        else:
            specific = normalize_cam(found.is_cam)
        if self.detach_cam:
            general = general.detach()
        counted = None
        if self.gsc_classes == "present":
            counted = torch.cat([torch.ones_like(label[:, :1]), label], dim=1)
        if self.background == "threshold":
            general, specific = general[:, 1:], specific[:, 1:]
            counted = None if counted is None else counted[:, 1:]
        return {"gsc": self.gsc_weight * gsc_loss(general, specific, counted)}

    @torch.no_grad()
    def maps_at_scale(self, images: Tensor, label: Tensor) -> dict[str, Tensor]:
        """CAM and IS-CAM of an image's present classes at one scale, not normalized.

        Args:
            images: (2, 3, H, W), the image and its mirror image.
            label: (N,).

        Returns:
            "cam" (K, h, w): ReLU first, then image + mirror; "is_cam" (K+1, h, w), background
            first, or (K, h, w) with background="threshold".
        """
        features, activation = self(images)
        is_cam = self._explore_pair(features, activation, label).found.is_cam
        if self.background == "estimated":
            is_cam = estimate_background(is_cam)
        present = label > 0
        kept = torch.cat([torch.full_like(present[:1], self.kinds["is_cam"]), present])
        cam = activation.float().relu()
        return {"cam": (cam[0] + cam[1].flip(-1))[present], "is_cam": is_cam[0, kept]}

    @torch.no_grad()
    def explore_image(self, image: Tensor, label: Tensor) -> Explored:
        """Class maps, structure feature, seeds, prototypes and IS-CAM of one image (3, H, W)."""
        features, activation = self(torch.stack([image, image.flip(-1)]))
        return self._explore_pair(features, activation, label)

    def figures(
        self, samples: Sequence[Mapping[str, Any]], folder: Path, class_names: Sequence[str]
    ) -> list[Path]:
        """Draw CAM, seeds, IS-CAM and structure maps of the samples, see `figures.draw`."""
        return draw(self, samples, folder, class_names)

    def _explore_pair(
        self, features: Sequence[Tensor], activation: Tensor, label: Tensor
    ) -> Explored:
        """Exploration of an image and its mirror image, whose raw maps and features are added."""

        def combine(pair: Tensor) -> Tensor:
            return pair[:1] + pair[1:].flip(-1)

        options = self.test_options
        spaces = {name: combine(feature) for name, feature in self._spaces(features).items()}
        present = label.float()[None, :, None, None]
        cam = normalize_cam(combine(activation.float()))
        present_cam = cam * present
        left_over = present_cam if options["background_classes"] == "present" else cam
        competing = present_cam if options["seed_classes"] == "present" else cam
        maps = torch.cat([add_background(left_over)[:, :1], competing], dim=1)
        maps = resize_maps(maps, (features[2].shape[-2], features[2].shape[-1]), align_corners=True)
        structure = spaces[options["structure"]]
        found = explore(
            maps,
            structure,
            spaces["g"],
            torch.cat([torch.ones_like(present[:, :1]), present], dim=1),
            float(options["attenuation"]),
            self.seeds,
            self.seed_threshold,
        )
        return Explored(maps, structure, found)

    def _spaces(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The features f and g on the working grid; both are detached from the backbone."""
        size = (features[2].shape[-2], features[2].shape[-1])
        f = resize_maps(features[-1].detach(), size, align_corners=False)
        if self.features == "semantic":
            return {"f": f, "g": f}
        sides = [side(x.detach()) for side, x in zip(self.sides, features, strict=True)]
        return {"f": f, "g": hierarchical_feature(sides, size)}
