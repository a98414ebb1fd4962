"""The CPAL branch: what any network that gives features and class maps can carry.

It knows nothing of its host. In: features, normalized class maps, image labels, valid window.
Out: PACAM and the self-supervision loss. Its support bank is filled and re-clustered from outside
(`wsss.methods.cpal.callback`), from the anchors that `take_anchors` hands over after each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.maps.functional import (
    add_background,
    class_valid_mask,
    normalize_cam,
    resize_maps,
)
from wsss.maps.structure import hierarchical_feature, locate_seeds, structure_iou
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.functional import (
    AGGREGATIONS,
    REDUCTIONS,
    SIMILARITIES,
    anchor_mask,
    background_mask,
    distribution_shift,
    masked_average,
    positiveness,
    prototype_aware_cam,
    self_supervision_loss,
    soft_neighbours,
)

CHOICES = {
    "features": ("layer4", "hierarchical"),
    "anchor": ("hard", "soft", "seeds"),
    "prototypes": ("context", "mean", "anchor"),
    "similarity": SIMILARITIES,
    "alignment": ("pixel", "anchor", "both", "off"),
    "aggregation": AGGREGATIONS,
    "background": ("complement", "prototype", "bank"),
    "reduction": REDUCTIONS,
    "test.alignment": ("off", "ema", "batch"),
    "test.background_classes": ("all", "present"),
    "test.structure": ("f", "z"),
}
TEST_DEFAULTS = {"alignment": "off", "background_classes": "all", "structure": "f"}


class BranchOutput(NamedTuple):
    """What the branch answers to a training batch."""

    pacam: Tensor
    """(B, N+1, h, w) in [0, 1], background first."""
    loss: Tensor
    """L_self (eq. 14), scalar, not weighted."""
    answered: Tensor
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


class CPALBranch(nn.Module):
    """Context prototype-aware learning on a host's features and class maps (CPAL section 3)."""

    shift: Tensor
    shift_known: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        features: str = "layer4",
        projection_dim: int = 128,
        side_channels: Sequence[int] = (128, 128, 256, 256),
        detach_features: bool = True,
        anchor: str = "hard",
        tau: float = 0.1,
        seed_attenuation: float = 1.0,
        detach_anchor: bool = False,
        prototypes: str = "context",
        own_prototype: bool = False,
        neighbours: int | str = 20,
        positiveness: bool = True,
        similarity: str = "dot",
        gamma: float = 1.0,
        temperature: float | None = None,
        alignment: str = "pixel",
        ema_momentum: float = 0.9,
        aggregation: str = "sum",
        background: str = "complement",
        reduction: str = "all",
        detach_cam: bool = False,
        bank: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
    ) -> None:
        """Build projection head and bank; the defaults are the paper's or our reading of it.

        Args:
            channels: Channels of the feature maps that the host hands over, in its order.
            num_classes: Number N of foreground classes.
            features: z: "layer4" (1×1 convolution of the last feature map) or "hierarchical"
                (SIPE's feature of all of them, without a further projection).
            projection_dim: d of "layer4".
            side_channels: Widths of "hierarchical", one per feature map; d is their sum.
            detach_features: Whether L_self stops at the branch instead of training the host's
                features through z.
            anchor: Positions that an anchor averages: "hard" mask M > τ, "soft" the same weighted
                by M, "seeds" SIPE's structure-aware seeds.
            tau: Threshold τ of the reliability score.
            seed_attenuation: Factor on the background's score for anchor="seeds".
            detach_anchor: Whether the positiveness is a constant.
            prototypes: What the anchor is compared with: "context" prototypes, the "mean" of the
                class's bank, or only the image's own "anchor" (ablations).
            own_prototype: Whether the image's own anchor joins the candidate neighbours.
            neighbours: K of eq. 6, or "all".
            positiveness: Whether neighbours are weighted by eq. 7, or equally.
            similarity: Similarity in eq. 7: "dot", "cosine", "l1", "l2".
            gamma: γ of eq. 7.
            temperature: Divisor of the similarity in eq. 7; None: √d.
            alignment: What ξ is added to in training: the "pixel" features, the "anchor" that
                chooses and weighs neighbours, "both" or nothing ("off").
            ema_momentum: Momentum of the moving average of ξ that test.alignment="ema" uses.
            aggregation: Where the ReLU of eq. 13 stands, see `prototype_aware_cam`.
            background: Background of PACAM: "complement" 1 − max, image-specific "prototype", or a
                "bank" of background anchors treated like one more class.
            reduction: Channels in the mean of L_self: "all" or "present".
            detach_cam: Whether L_self's CAM side is a constant.
            bank: Options of `PrototypeBank`: size, clusters, max_clusters, entries_per_cluster.
            test: What holds at test time only: `alignment` "off", "ema" or "batch" (the image's
                own anchors stand for the mini-batch); `background_classes`, whether the CAM's
                background, which anchor="seeds" looks at, is 1 − max over "all" or "present";
                `structure`, whether anchor="seeds" takes correlations from the last feature "f"
                (as in training) or from "z" (as SIPE does from its hierarchical feature).

        Raises:
            WsssError: If a value makes no sense; the message names its key.
        """
        super().__init__()
        given = {**TEST_DEFAULTS, **(test or {})}
        # An unquoted `off` in YAML is the boolean False.
        alignment = "off" if alignment is False else alignment
        test_alignment = "off" if given["alignment"] is False else given["alignment"]
        values = {
            "features": features,
            "anchor": anchor,
            "prototypes": prototypes,
            "similarity": similarity,
            "alignment": alignment,
            "aggregation": aggregation,
            "background": background,
            "reduction": reduction,
            "test.alignment": test_alignment,
            "test.background_classes": given["background_classes"],
            "test.structure": given["structure"],
        }
        for key, value in values.items():
            if value not in CHOICES[key]:
                raise WsssError(
                    f"method.{key}={value} is unknown; choose one of {', '.join(CHOICES[key])}"
                )
        if neighbours != "all" and (isinstance(neighbours, str) or neighbours < 1):
            raise WsssError(f"method.neighbours={neighbours}: give a number from 1 or 'all'")
        if not 0 <= tau < 1:
            raise WsssError(f"method.tau={tau}: the normalized CAM lies in [0, 1)")
        if gamma <= 0 or (temperature is not None and temperature <= 0):
            raise WsssError(
                f"method.gamma={gamma}, method.temperature={temperature}: must be positive"
            )
        self.num_classes = num_classes
        self.features, self.detach_features = features, detach_features
        self.anchor, self.tau, self.seed_attenuation = anchor, tau, seed_attenuation
        self.detach_anchor = detach_anchor
        self.prototypes, self.own_prototype = prototypes, own_prototype
        self.neighbours = None if isinstance(neighbours, str) else int(neighbours)
        self.positiveness, self.similarity = positiveness, similarity
        self.gamma, self.temperature = gamma, temperature
        self.alignment, self.test_alignment = alignment, test_alignment
        self.test_background_classes = given["background_classes"]
        self.test_structure = given["structure"]
        self.ema_momentum = ema_momentum
        self.aggregation, self.background = aggregation, background
        self.reduction, self.detach_cam = reduction, detach_cam

        if features == "hierarchical":
            if len(side_channels) != len(channels):
                raise WsssError(
                    f"method.side_channels={list(side_channels)}: give one width for each of the "
                    f"{len(channels)} feature maps"
                )
            widths, inputs = [int(width) for width in side_channels], list(channels)
        else:
            widths, inputs = [int(projection_dim)], [channels[-1]]
        self.projection = nn.ModuleList(
            nn.Conv2d(given_channels, width, 1, bias=False)
            for given_channels, width in zip(inputs, widths, strict=True)
        )
        dim = sum(widths)
        banks = num_classes + (background == "bank")
        self.bank = PrototypeBank(banks, dim, **(bank or {}))
        self.register_buffer("shift", torch.zeros(banks, dim))
        self.register_buffer("shift_known", torch.zeros(banks, dtype=torch.bool))
        self._pending: tuple[Tensor, Tensor] | None = None

    def forward(
        self, features: Sequence[Tensor], cam: Tensor, label: Tensor, valid: Tensor
    ) -> BranchOutput:
        """PACAM and L_self of a training batch; its anchors wait for `take_anchors`.

        Args:
            features: The host's feature maps, each (B, C_s, h_s, w_s).
            cam: Normalized class maps M (B, N, h, w) in [0, 1], with their gradient.
            label: Image labels (B, N) of zeros and ones.
            valid: (B, H, W), 1 inside the un-padded window of the crop.

        Returns:
            PACAM, L_self and the channels that have an answer. Until a class has context
            prototypes it is left out.
        """
        z = self.project(features)
        grid = (z.shape[2], z.shape[3])
        with torch.autocast(z.device.type, enabled=False):
            maps = resize_maps(add_background(cam.float()), grid, align_corners=True)
            allowed = class_valid_mask(valid, label.float(), grid)
            pairs = self._pairs(z, maps, allowed, features[-1])
            self._pending = self._banked(pairs)
            shift = self._batch_shift(pairs)
            applied = shift if self.alignment != "off" else torch.zeros_like(shift)
            pacam, answered = self._pacam(z, maps, allowed, pairs, applied, self.alignment)
            if self.detach_cam:
                maps = maps.detach()
            loss = self_supervision_loss(
                maps * allowed, pacam * allowed, allowed, answered, self.reduction
            )
        return BranchOutput(pacam, loss, answered)

    @torch.no_grad()
    def predict(self, z: Tensor, cam: Tensor, label: Tensor, structure: Tensor) -> BranchOutput:
        """PACAM of whole images at test time.

        A present class without anchor or context prototypes shows its CAM, so that every class of
        the label has a map.

        Args:
            z: Projected features (B, d, h, w), of `project`, possibly averaged over mirror images.
            cam: Normalized class maps (B, N, h', w').
            label: Image labels (B, N).
            structure: Feature (B, C, h, w) whose correlations anchor="seeds" looks at.

        Returns:
            PACAM (B, N+1, h, w), 0 for absent classes; the loss is 0.
        """
        maps, allowed, pairs = self._observe(z, cam, label, structure)
        shift = torch.zeros_like(self.shift)
        if self.test_alignment == "ema":
            shift = self.shift
        elif self.test_alignment == "batch":
            known, mean = self._class_means(pairs)
            shift = distribution_shift(self.bank.mean(), mean, known & (self.bank.count > 0))
        where = self.alignment if self.alignment != "off" else "pixel"
        pacam, answered = self._pacam(z.float(), maps, allowed, pairs, shift, where)
        return BranchOutput(pacam * allowed, z.new_zeros(()), answered)

    @torch.no_grad()
    def anchors(
        self, z: Tensor, cam: Tensor, label: Tensor, structure: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of whole images; arguments as in `predict`."""
        _, _, pairs = self._observe(z, cam, label, structure)
        return self._banked(pairs)

    def project(self, features: Sequence[Tensor]) -> Tensor:
        """Projected features z = v(f), (B, d, h, w) float32."""
        if self.features == "layer4":
            features = features[-1:]
        if self.detach_features:
            features = [feature.detach() for feature in features]
        sides = [head(feature) for head, feature in zip(self.projection, features, strict=True)]
        if self.features == "layer4":
            return sides[0].float()
        # The working grid is the stage before the last one's, as in SIPE.
        return hierarchical_feature(sides, (sides[-2].shape[2], sides[-2].shape[3])).float()

    def take_anchors(self) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of the last batch; none when taken before."""
        if self._pending is None:
            device = self.shift.device
            nothing = torch.zeros(0, self.shift.shape[1], device=device)
            return nothing, torch.zeros(0, dtype=torch.long, device=device)
        pending, self._pending = self._pending, None
        return pending

    def responses(self, z: Tensor, index: int) -> Tensor:
        """Which prototype answers where: ReLU(cos) of every context prototype of one class.

        Args:
            z: Projected features of one image (d, h, w).
            index: Class index 0..N-1.

        Returns:
            (clusters in use, h, w) in [0, 1].
        """
        used = self.bank.context[index, : int(self.bank.cluster_count[index])]
        cosine = F.normalize(used, dim=1) @ F.normalize(z.float(), dim=0).flatten(1)
        return F.relu(cosine).unflatten(1, z.shape[1:])

    def _observe(
        self, z: Tensor, cam: Tensor, label: Tensor, structure: Tensor
    ) -> tuple[Tensor, Tensor, Pairs]:
        """Class maps with background, allowed channels and pairs of whole images."""
        with torch.autocast(z.device.type, enabled=False):
            cam = cam.float()
            if self.test_structure == "z":
                structure = z
            if self.test_background_classes == "present":
                cam = cam * label[:, :, None, None].to(cam.dtype)
            maps = resize_maps(add_background(cam), (z.shape[2], z.shape[3]), align_corners=True)
            allowed = class_valid_mask(
                torch.ones_like(maps[:, 0]), label.to(maps.dtype), (z.shape[2], z.shape[3])
            )
            return maps, allowed, self._pairs(z.float(), maps, allowed, structure)

    def _pairs(self, z: Tensor, maps: Tensor, allowed: Tensor, structure: Tensor) -> Pairs:
        """Anchors of the present classes; those without any position are left out (eq. 4)."""
        if self.anchor == "seeds":
            structure = resize_maps(structure.float(), (z.shape[2], z.shape[3]), False)
            present = maps.detach() * allowed
            scores = structure_iou(structure, present)
            mask = locate_seeds(scores, allowed, self.seed_attenuation)
            mask = torch.cat([mask[:, 1:], mask[:, :1]], dim=1)
        else:
            mask = torch.cat(
                [
                    anchor_mask(maps[:, 1:], allowed[:, 1:], self.tau, self.anchor == "soft"),
                    background_mask(maps, allowed[:, :1]),
                ],
                dim=1,
            )
        if self.background == "complement":
            mask = mask[:, :-1]
        image, index = (mask.sum(dim=(2, 3)) > 0).nonzero(as_tuple=True)
        features = z.flatten(2)[image]
        anchors = masked_average(features, mask.flatten(2)[image, index])
        return Pairs(image, index, features, anchors)

    def _banked(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Detached anchors and their index in the bank, where there is a bank for them.

        The background's image-specific prototype (background="prototype") has none.
        """
        inside = pairs.classes < self.bank.num_classes
        return pairs.anchors.detach()[inside], pairs.classes[inside]

    def _class_means(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Classes seen (banks,) bool and their mean anchor (banks, d) in the global mini-batch."""
        anchors, index = self._banked(pairs)
        member = F.one_hot(index, self.bank.num_classes).to(anchors.dtype)
        total = torch.cat([member.T @ anchors, member.sum(0)[:, None]], dim=1)
        if self.training and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        count = total[:, -1]
        return count > 0, total[:, :-1] / count.clamp(min=1)[:, None]

    def _batch_shift(self, pairs: Pairs) -> Tensor:
        """ξ of the mini-batch (eq. 12), (banks, d), a constant; moves the average for test time."""
        known, mean = self._class_means(pairs)
        known = known & (self.bank.count > 0)
        shift = distribution_shift(self.bank.mean(), mean, known)
        if self.training:
            # The first value is taken as it is: an average that starts at 0 would lag.
            momentum = self.ema_momentum * self.shift_known[:, None]
            average = momentum * self.shift + (1 - momentum) * shift
            self.shift.copy_(torch.where(known[:, None], average, self.shift))
            self.shift_known.logical_or_(known)
        return shift

    def _candidates(self, anchors: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Candidate neighbours (P, k, d) of each pair and which of them exist (P, k)."""
        if self.prototypes == "context":
            prototypes, available = self.bank.context[index], self.bank.available()[index]
        elif self.prototypes == "mean":
            prototypes = self.bank.mean()[index, None]
            available = torch.ones_like(index[:, None], dtype=torch.bool)
        else:
            return anchors[:, None], torch.ones_like(index[:, None], dtype=torch.bool)
        if self.own_prototype:
            prototypes = torch.cat([prototypes, anchors[:, None]], dim=1)
            available = torch.cat([available, torch.ones_like(available[:, :1])], dim=1)
        return prototypes, available

    def _respond(self, pairs: Pairs, shift: Tensor, where: str) -> Tensor:
        """PACAM of pairs whose classes have prototypes, (P, h·w), not normalized (eq. 6, 7, 13)."""
        anchors = pairs.anchors.detach() if self.detach_anchor else pairs.anchors
        moved = shift[pairs.classes]
        prototypes, available = self._candidates(anchors, pairs.classes)
        query = anchors + moved if where in ("anchor", "both") else anchors
        selected = soft_neighbours(query, prototypes, available, self.neighbours)
        weights = selected.to(query.dtype)
        if self.positiveness:
            weights = positiveness(
                query, prototypes, selected, self.similarity, self.gamma, self.temperature
            )
        features = pairs.features
        if where in ("pixel", "both"):
            features = features + moved[..., None]
        return prototype_aware_cam(features, prototypes, weights, self.aggregation)

    def _pacam(
        self, z: Tensor, maps: Tensor, allowed: Tensor, pairs: Pairs, shift: Tensor, where: str
    ) -> tuple[Tensor, Tensor]:
        """PACAM with background (B, N+1, h, w) and the channels that come from prototypes.

        A present class without an answer shows its CAM: as a constant it pulls the loss nowhere,
        and the background's complement does not claim its place.
        """
        images, channels = maps.shape[:2]
        ready = torch.cat([self.bank.cluster_count > 0, self.shift_known.new_zeros(1)])
        kept = ready[pairs.classes]
        asked = Pairs(*(field[kept] for field in pairs))
        # Class n is channel n + 1; the background's anchors (index N) answer in channel 0.
        channel = (asked.classes + 1) % channels
        response = self._respond(asked, shift, where).view(-1, 1, *z.shape[2:])
        response = normalize_cam(response).squeeze(1)
        answered = torch.zeros(images, channels, dtype=torch.bool, device=z.device)
        answered[asked.image, channel] = True
        fallback = maps.detach() * allowed
        pacam = fallback.index_put((asked.image, channel), response)

        foreground = pacam[:, 1:]
        complement = 1 - foreground.amax(1, keepdim=True)
        if self.background == "complement":
            background = complement
        elif self.background == "bank":
            background = torch.where(answered[:, :1, None, None], pacam[:, :1], complement)
        else:
            own = pairs.classes == channels - 1
            features, anchors = pairs.features[own], pairs.anchors[own]
            if self.detach_anchor:
                anchors = anchors.detach()
            one = torch.ones_like(anchors[:, :1])
            response = prototype_aware_cam(features, anchors[:, None], one)
            response = normalize_cam(response.view(-1, 1, *z.shape[2:]))
            background = complement.index_put((pairs.image[own],), response)
        # Where no class answers there is nothing to hold the background against.
        answered = torch.cat([answered[:, 1:].any(1, keepdim=True), answered[:, 1:]], dim=1)
        return torch.cat([background, foreground], dim=1), answered
