"""The CPAL branch: what any network that gives features and class maps can carry.

It knows nothing of its host. In: features, normalized class maps, image labels, valid window.
Out: PACAM and the self-supervision loss. Its support bank is filled and re-clustered from outside
(`wsss.methods.cpal.callback`), from the anchors that `take_anchors` hands over after each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.datamodule import Sample, WholeSet
from wsss.hosts.base import Seen, add_mirror
from wsss.maps.functional import (
    add_background,
    class_valid_mask,
    normalize_cam,
    resize_maps,
)
from wsss.maps.structure import hierarchical_feature, locate_seeds, structure_iou
from wsss.methods.base import Branch, Network
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.callback import PrototypeCallback, refill
from wsss.methods.cpal.functional import (
    anchor_mask,
    background_mask,
    distribution_shift,
    masked_average,
    positiveness,
    prototype_aware_cam,
    self_supervision_loss,
    soft_neighbors,
)
from wsss.methods.cpal.settings import CPALSettings
from wsss.methods.sipe.branch import side_convolutions
from wsss.run.compute import at_least_float32
from wsss.run.reduce import gather_rows, global_sum, world_and_rank


class BranchOutput(NamedTuple):
    """What the branch answers to a training batch."""

    pacam: Tensor
    """(B, N+1, h, w) in [0, 1], background first."""
    loss: Tensor
    """L_self (eq. 14), scalar, not weighted."""
    has_prototypes: Tensor
    """(B, N+1) bool, channels whose PACAM comes from prototypes."""


class Pairs(NamedTuple):
    """The (image, class) pairs of a batch that have an anchor."""

    image: Tensor
    """(P,) int64."""
    classes: Tensor
    """(P,) int64, 0..N-1, or N for the background."""
    features: Tensor
    """z of the pair's image, (P, d, h·w)."""
    anchors: Tensor
    """(P, d) (eq. 4)."""


class CPAL(Branch):
    """Context prototype-aware learning on a host's features and class maps (CPAL section 3).

    L = λ1 L_host + λ2 L_self (eq. 1).
    """

    Settings = CPALSettings
    options: CPALSettings

    shift: Tensor
    shift_known: Tensor

    def __init__(
        self, options: CPALSettings, channels: Sequence[int], num_classes: int, seed: int = 0
    ) -> None:
        """Build projection head and bank; arguments as in `Branch`.

        Raises:
            WsssError: `side_channels` does not fit the host's feature maps.
        """
        super().__init__(options, channels, num_classes, seed)
        self.kinds = {"pacam": True}
        self.host_weight = options.lambda_cls
        reaches_host = not (options.detach_cam and options.detach_features)
        self.trains_host = options.lambda_cls != 1 or (options.lambda_self > 0 and reaches_host)
        self.projection = nn.ModuleList()
        if options.features == "hierarchical":
            self.projection.extend(side_convolutions(channels, options.side_channels))
        else:
            self.projection.append(nn.Conv2d(channels[-1], options.projection_dim, 1, bias=False))
        if options.lambda_self == 0:
            self.projection.requires_grad_(False)
        dim = sum(head.out_channels for head in self.projection)  # type: ignore[misc]
        banks = num_classes + (options.background == "bank")
        self.bank = PrototypeBank(banks, dim, options.bank)
        self.register_buffer("shift", torch.zeros(banks, dim))
        self.register_buffer("shift_known", torch.zeros(banks, dtype=torch.bool))
        self._pending: tuple[Tensor, ...] | None = None

    def losses(self, seen: Seen, cam: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """λ2 L_self of a training batch (eq. 14); its anchors wait for the bank."""
        weight = self.options.lambda_self
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
            answer = self(seen.features, cam, batch["label"], batch["valid"])
        return {"self": weight * answer.loss} if weight > 0 else {}

    @torch.no_grad()
    def maps(self, seen: Seen, cam: Tensor, label: Tensor) -> dict[str, Tensor]:
        """PACAM (K+1, h, w) of an image's present classes at one scale, background first."""
        present = label > 0
        kept = torch.cat([torch.ones_like(present[:1]), present])
        return {"pacam": self.predict(*self.observe(seen), cam, label[None]).pacam[0, kept]}

    def observe(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Z (1, d, h, w) and f (1, C, h', w') of an image and its mirror image, averaged.

        Averaging keeps the length of z what it was in training, which the dot product of eq. 7
        depends on.
        """
        z = self.project(seen.features)
        return add_mirror(z) / 2, add_mirror(at_least_float32(seen.features[-1])) / 2

    def callbacks(self) -> list[pl.Callback]:
        """The callback that fills the bank comes with the method."""
        o = self.options
        return [PrototypeCallback(self, self.seed, o.warmup_epochs, o.recluster, o.refill)]

    def before_maps(self, network: Network, images: WholeSet) -> None:
        """Refill and cluster the bank with the final weights, where `test.refresh_bank` asks."""
        if self.options.test.refresh_bank:
            refill(network, self, images)
            self.bank.recluster(self.seed)

    def notes(self) -> dict[str, Any]:
        """How the maps were made: the test options and how full the bank is."""
        return {
            **asdict(self.options.test),
            "bank": self.bank.statistics(),
            "classes_without_prototypes": int((~self._ready()).sum()),
        }

    def training_figures(self, metrics: Path, folder: Path) -> list[Path]:
        """Draw bank fill and cluster sizes over the epochs."""
        from wsss.methods.cpal.figures import draw_bank_history

        return [draw_bank_history(metrics, folder / "bank_history.png", self.name)]

    def figures(self, network: Network, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Draw the figures of the paper for these samples, see `figures.draw`."""
        from wsss.methods.cpal.figures import ObservedPicture, draw

        def observed(sample: Sample) -> ObservedPicture:
            image, label = (x.to(network.device) for x in (sample["images"][0], sample["label"]))
            given = sample["maps"].to(network.device) if "maps" in sample else None
            seen, cam = network.see_pair(image, label, given)
            z, structure = self.observe(seen)
            picture = sample["picture"].numpy()
            return ObservedPicture(sample["name"], picture, label, z, structure, cam)

        return draw(self, [observed(one) for one in samples], folder, network.host.classes)

    def forward(
        self, features: Sequence[Tensor], cam: Tensor, label: Tensor, valid: Tensor
    ) -> BranchOutput:
        """PACAM and L_self of a training batch; its anchors wait for `take_anchors`.

        Args:
            features: the host's feature maps, each (B, C_s, h_s, w_s).
            cam: normalized class maps M (B, N, h, w) in [0, 1], with their gradient.
            label: image labels (B, N) of zeros and ones.
            valid: (B, H, W), 1 inside the un-padded window of the crop.

        Returns:
            PACAM, L_self and the channels that have an answer. Until a class has context
            prototypes it is left out.
        """
        z = self.project(features)
        grid = (z.shape[2], z.shape[3])
        with torch.autocast(z.device.type, enabled=False):
            maps = resize_maps(add_background(cam.to(z.dtype)), grid, align_corners=True)
            valid_mask = class_valid_mask(valid, label.to(z.dtype), grid)
            pairs = self._pairs(z, maps, valid_mask, features[-1])
            self._pending = self._banked(pairs)
            shift = self._batch_shift(pairs)
            applied = shift if self.options.alignment != "off" else torch.zeros_like(shift)
            pacam, has_prototypes = self._pacam(
                z, maps, valid_mask, pairs, applied, self.options.alignment
            )
            if self.options.detach_cam:
                maps = maps.detach()
            loss = self_supervision_loss(
                maps * valid_mask,
                pacam * valid_mask,
                valid_mask,
                has_prototypes,
                self.options.reduction,
            )
        return BranchOutput(pacam, loss, has_prototypes)

    @torch.no_grad()
    def predict(self, z: Tensor, structure: Tensor, cam: Tensor, label: Tensor) -> BranchOutput:
        """PACAM of whole images at test time.

        A present class without anchor or prototypes shows its CAM, so that every class of the
        label has a map.

        Args:
            z: projected features (B, d, h, w), of `project`, possibly averaged over mirror images.
            structure: feature (B, C, h', w') whose correlations anchor=seeds looks at.
            cam: normalized class maps (B, N, h'', w'').
            label: image labels (B, N).

        Returns:
            PACAM (B, N+1, h, w), 0 for absent classes; the loss is 0.
        """
        test = self.options.test
        z = at_least_float32(z)
        with torch.autocast(z.device.type, enabled=False):
            maps, valid_mask, structure = self._whole_images(z, structure, cam, label)
            where = self.options.alignment if self.options.alignment != "off" else "pixel"
            located = maps
            for _ in range(test.rounds):
                pairs = self._pairs(z, located, valid_mask, structure)
                shift = torch.zeros_like(self.shift)
                if test.alignment == "ema":
                    shift = self.shift
                elif test.alignment == "batch":
                    known, mean = self._class_means(pairs)
                    known = known & (self.bank.count > 0)
                    shift = distribution_shift(self.bank.mean(), mean, known)
                pacam, has_prototypes = self._pacam(z, maps, valid_mask, pairs, shift, where)
                both = (maps + pacam)[:, 1:] * valid_mask[:, 1:]
                located = add_background(normalize_cam(both))
        return BranchOutput(pacam * valid_mask, z.new_zeros(()), has_prototypes)

    @torch.no_grad()
    def anchors(
        self, z: Tensor, structure: Tensor, cam: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of whole images; arguments as in `predict`."""
        with torch.autocast(z.device.type, enabled=False):
            maps, valid_mask, structure = self._whole_images(z, structure, cam, label)
            pairs = self._pairs(at_least_float32(z), maps, valid_mask, structure)
            anchors, classes, _ = self._banked(pairs)
            return anchors, classes

    def project(self, features: Sequence[Tensor]) -> Tensor:
        """Projected features z = v(f), (B, d, h, w), in float32 or more."""
        if self.options.features == "layer4":
            features = features[-1:]
        if self.options.detach_features:
            features = [feature.detach() for feature in features]
        sides = [head(feature) for head, feature in zip(self.projection, features, strict=True)]
        if self.options.features == "layer4":
            return at_least_float32(sides[0])
        # The working grid is the stage before the last one's, as in SIPE.
        return hierarchical_feature(sides, (sides[-2].shape[2], sides[-2].shape[3]))

    def take_anchors(self) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of the last global batch, image by image.

        All processes must call it. There are none when they were taken before.
        """
        whole = torch.zeros(0, dtype=torch.long, device=self.shift.device)
        anchors, classes, image = self._pending or (self.shift[:0], whole, whole)
        self._pending = None
        world, rank = world_and_rank()
        anchors, classes = gather_rows(anchors, classes, image * world + rank)
        return anchors, classes

    def responses(self, z: Tensor, index: int) -> Tensor:
        """Which prototype answers where: ReLU(cos) of every context prototype of one class.

        Args:
            z: projected features of one image (d, h, w).
            index: class index 0..N-1.

        Returns:
            (clusters in use, h, w) in [0, 1].
        """
        used = self.bank.context[index, : int(self.bank.cluster_count[index])]
        cosine = F.normalize(used, dim=1) @ F.normalize(z.to(used.dtype), dim=0).flatten(1)
        return F.relu(cosine).unflatten(1, z.shape[1:])

    def _whole_images(
        self, z: Tensor, structure: Tensor, cam: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class maps with background, valid mask and structure of whole images."""
        z = at_least_float32(z)
        cam = cam.to(z.dtype)
        if self.options.test.structure == "z":
            structure = z
        if self.options.test.background_classes == "present":
            cam = cam * label[:, :, None, None].to(cam.dtype)
        grid = (z.shape[2], z.shape[3])
        maps = resize_maps(add_background(cam), grid, align_corners=True)
        valid_mask = class_valid_mask(torch.ones_like(maps[:, 0]), label.to(maps.dtype), grid)
        return maps, valid_mask, structure

    def _pairs(self, z: Tensor, maps: Tensor, valid_mask: Tensor, structure: Tensor) -> Pairs:
        """Anchors of the present classes; those without any position are left out (eq. 4)."""
        if self.options.anchor == "seeds":
            structure = resize_maps(at_least_float32(structure), (z.shape[2], z.shape[3]), False)
            present = maps.detach() * valid_mask
            scores = structure_iou(structure, present)
            mask = locate_seeds(scores, valid_mask, self.options.seed_attenuation)
            mask = torch.cat([mask[:, 1:], mask[:, :1]], dim=1)
        else:
            mask = torch.cat(
                [
                    anchor_mask(maps[:, 1:], valid_mask[:, 1:], self.options.tau),
                    background_mask(maps, valid_mask[:, :1]),
                ],
                dim=1,
            )
        if self.options.background == "complement":
            mask = mask[:, :-1]
        image, index = (mask.sum(dim=(2, 3)) > 0).nonzero(as_tuple=True)
        features = z.flatten(2)[image]
        anchors = masked_average(features, mask.flatten(2)[image, index])
        return Pairs(image, index, features, anchors)

    def _banked(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Detached anchors, their index in the bank and their image, where there is a bank.

        The background's image-specific prototype (background="prototype") has none.
        """
        inside = pairs.classes < self.bank.num_classes
        return pairs.anchors.detach()[inside], pairs.classes[inside], pairs.image[inside]

    def _class_means(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Classes seen (banks,) bool and their mean anchor (banks, d) in the global mini-batch."""
        anchors, index, _ = self._banked(pairs)
        member = F.one_hot(index, self.bank.num_classes).to(anchors.dtype)
        total = torch.cat([member.T @ anchors, member.sum(0)[:, None]], dim=1)
        if self.training:
            total = global_sum(total)
        count = total[:, -1]
        return count > 0, total[:, :-1] / count.clamp(min=1)[:, None]

    def _batch_shift(self, pairs: Pairs) -> Tensor:
        """ξ of the mini-batch (eq. 12), (banks, d), a constant; moves the average for test time."""
        known, mean = self._class_means(pairs)
        known = known & (self.bank.count > 0)
        shift = distribution_shift(self.bank.mean(), mean, known)
        if self.training:
            # The first value is taken as it is: an average that starts at 0 would lag.
            momentum = self.options.ema_momentum * self.shift_known[:, None]
            average = momentum * self.shift + (1 - momentum) * shift
            self.shift.copy_(torch.where(known[:, None], average, self.shift))
            self.shift_known.logical_or_(known)
        return shift

    def _ready(self) -> Tensor:
        """Classes that have something to compare an anchor with, (banks,) bool.

        In a training none has before the warm-up is over; only `context` needs clusters.
        """
        if self.options.prototypes == "context":
            return self.bank.cluster_count > 0
        ready = self.bank.count > 0
        if self.options.prototypes == "anchor":
            ready = torch.ones_like(ready)
        return ready & (self.bank.clustered_epoch >= 0) if self.training else ready

    def _candidates(self, anchors: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Candidate neighbors (P, k, d) of each pair and which of them exist (P, k)."""
        if self.options.prototypes == "context":
            prototypes, available = self.bank.context[index], self.bank.available()[index]
        elif self.options.prototypes == "mean":
            prototypes = self.bank.mean()[index, None]
            available = torch.ones_like(index[:, None], dtype=torch.bool)
        else:
            return anchors[:, None], torch.ones_like(index[:, None], dtype=torch.bool)
        if self.options.own_prototype:
            prototypes = torch.cat([prototypes, anchors[:, None]], dim=1)
            available = torch.cat([available, torch.ones_like(available[:, :1])], dim=1)
        return prototypes, available

    def _respond(self, pairs: Pairs, shift: Tensor, where: str) -> Tensor:
        """PACAM of pairs whose classes have prototypes, (P, h·w), not normalized (eq. 6, 7, 13)."""
        anchors = pairs.anchors.detach() if self.options.detach_anchor else pairs.anchors
        moved = shift[pairs.classes]
        prototypes, available = self._candidates(anchors, pairs.classes)
        wanted = None if self.options.neighbors == "all" else self.options.neighbors
        query = anchors + moved if where in ("anchor", "both") else anchors
        selected = soft_neighbors(query, prototypes, available, wanted)
        weights = selected.to(query.dtype)
        if self.options.positiveness:
            weights = positiveness(
                query,
                prototypes,
                selected,
                self.options.similarity,
                self.options.temperature,
            )
        features = pairs.features
        if where in ("pixel", "both"):
            features = features + moved[..., None]
        return prototype_aware_cam(features, prototypes, weights)

    def _pacam(
        self, z: Tensor, maps: Tensor, valid_mask: Tensor, pairs: Pairs, shift: Tensor, where: str
    ) -> tuple[Tensor, Tensor]:
        """PACAM with background (B, N+1, h, w) and the channels that come from prototypes.

        A present class without an answer shows its CAM: as a constant it pulls the loss nowhere,
        and the background's complement does not claim its place.
        """
        images, channels = maps.shape[:2]
        able = torch.cat([self._ready(), self.shift_known.new_zeros(1)])
        kept = able[pairs.classes]
        ready = Pairs(*(field[kept] for field in pairs))
        # Class n is channel n + 1; the background's anchors (index N) answer in channel 0.
        channel = (ready.classes + 1) % channels
        response = self._respond(ready, shift, where).view(-1, 1, *z.shape[2:])
        response = normalize_cam(response).squeeze(1)
        has_prototypes = torch.zeros(images, channels, dtype=torch.bool, device=z.device)
        has_prototypes[ready.image, channel] = True
        fallback = maps.detach() * valid_mask
        pacam = fallback.index_put((ready.image, channel), response)

        foreground = pacam[:, 1:]
        complement = 1 - foreground.amax(1, keepdim=True)
        if self.options.background == "complement":
            background = complement
        elif self.options.background == "bank":
            background = torch.where(has_prototypes[:, :1, None, None], pacam[:, :1], complement)
        else:
            own = pairs.classes == channels - 1
            features, anchors = pairs.features[own], pairs.anchors[own]
            if self.options.detach_anchor:
                anchors = anchors.detach()
            one = torch.ones_like(anchors[:, :1])
            response = prototype_aware_cam(features, anchors[:, None], one)
            response = normalize_cam(response.view(-1, 1, *z.shape[2:]))
            background = complement.index_put((pairs.image[own],), response)
        # Where no class answers there is nothing to hold the background against.
        has_prototypes = torch.cat(
            [has_prototypes[:, 1:].any(1, keepdim=True), has_prototypes[:, 1:]], dim=1
        )
        return torch.cat([background, foreground], dim=1), has_prototypes
