"""The options of CPAL: what the paper states, and our readings of the rest."""

from __future__ import annotations

from typing import Literal

from wsss.errors import WsssError
from wsss.settings import Below1, Count, NotNegative, Positive, Whole, settings

Prototypes = Literal["context", "mean", "anchor"]


@settings
class BankSettings:
    """The support bank.

    Attributes:
        size: anchors kept per class (stated: 1000).
        clusters: k of the k-means (stated: 50), or `auto`: one per `entries_per_cluster` entries.
        max_clusters: upper limit of clusters=auto.
        entries_per_cluster: see `clusters`.
    """

    size: Count = 1000
    clusters: Count | Literal["auto"] = 50
    max_clusters: Count = 50
    entries_per_cluster: Count = 20


@settings
class CPALTest:
    """What holds when maps are made.

    Attributes:
        alignment: ξ at test time: off, the moving average of training (ema), or the image's own
            anchors in the mini-batch's place (batch).
        background_classes: whether the CAM's background, which anchor=seeds looks at, is 1 - max
            over all or over present classes.
        structure: whether anchor=seeds takes correlations from the last feature f, as in training,
            or from z, as SIPE does from its hierarchical feature.
        refresh_bank: whether the bank is refilled and clustered with the final weights first.
        rounds: how often anchors are taken: first where the CAM is, then where its mean with the
            last PACAM is, whose background is 1 - max over the classes.
    """

    alignment: Literal["off", "ema", "batch"] = "batch"
    background_classes: Literal["all", "present"] = "all"
    structure: Literal["f", "z"] = "f"
    refresh_bank: bool = False
    rounds: Count = 1


@settings
class CPALSettings:
    """The options of CPAL; the defaults are the paper's, or our reading of it.

    Attributes:
        lambda_cls: λ1, factor on the host's losses.
        lambda_self: λ2, factor on L_self; 0 trains the host alone while the bank fills (Table 1,
            II to IV).
        reduction: channels in the mean of L_self: all, or present.
        detach_cam: whether L_self's CAM side is a constant.
        features: z: `layer4` (1x1 convolution of the host's last feature map) or `hierarchical`
            (SIPE's feature of all of them, without a further projection).
        projection_dim: d of features=layer4.
        side_channels: widths of features=hierarchical, one per feature map; d is their sum.
        detach_features: whether L_self stops at the branch instead of training the host's
            features through z.
        anchor: positions that an anchor averages: `hard` mask M > τ, or `seeds`, SIPE's
            structure-aware seeds.
        tau: threshold τ of the reliability score.
        seed_attenuation: factor on the background's score for anchor=seeds.
        detach_anchor: whether the positiveness is a constant.
        bank: the support bank.
        warmup_epochs: first epoch (from 0) with L_self; before it the bank only fills.
        recluster: at the start of each `epoch`, `once` after the warm-up, or `never`, which leaves
            no context prototypes.
        refill: `epoch` renews the bank with the current weights before each clustering.
        prototypes: what the anchor is compared with: `context` prototypes, the `mean` of the
            class's bank, or only the image's own `anchor` (ablations).
        own_prototype: whether the image's own anchor joins the candidate neighbors.
        neighbors: K of eq. 6, or `all`.
        positiveness: whether neighbors are weighted by eq. 7, or equally.
        similarity: similarity in eq. 7.
        temperature: divisor of the similarity in eq. 7; None: √d.
        alignment: what ξ is added to in training: the `pixel` features, the `anchor` that chooses
            and weighs neighbors, `both`, or nothing.
        ema_momentum: momentum of the moving average of ξ that test.alignment=ema uses.
        background: background of PACAM: `complement` 1 - max, image-specific `prototype`, or a
            `bank` of background anchors treated like one more class.
        test: what holds when maps are made.

    Raises:
        WsssError: recluster=never where context prototypes are asked for.
    """

    lambda_cls: NotNegative = 1.0
    lambda_self: NotNegative = 1.0
    reduction: Literal["all", "present"] = "all"
    detach_cam: bool = False

    features: Literal["layer4", "hierarchical"] = "layer4"
    projection_dim: Count = 128
    side_channels: tuple[Count, ...] = (128, 128, 256, 256)
    detach_features: bool = True

    anchor: Literal["hard", "seeds"] = "hard"
    tau: Below1 = 0.1
    seed_attenuation: NotNegative = 1.0
    detach_anchor: bool = False

    bank: BankSettings = BankSettings()
    warmup_epochs: Whole = 1
    recluster: Literal["epoch", "once", "never"] = "epoch"
    refill: Literal["never", "epoch"] = "never"

    prototypes: Prototypes = "context"
    own_prototype: bool = False
    neighbors: Count | Literal["all"] = 20
    positiveness: bool = True
    similarity: Literal["dot", "cosine", "l1", "l2"] = "dot"
    temperature: Positive | None = None

    alignment: Literal["pixel", "anchor", "both", "off"] = "pixel"
    ema_momentum: Below1 = 0.9
    background: Literal["complement", "prototype", "bank"] = "complement"

    test: CPALTest = CPALTest()

    def __post_init__(self) -> None:
        if self.recluster == "never" and self.prototypes == "context":
            raise WsssError(
                "method.recluster=never leaves no context prototypes, and L_self would be 0: "
                "choose epoch or once, or method.prototypes=mean or anchor"
            )
