"""What every segmentation network answers, and how weights from a file get into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsss.backbones.base import read_state_dict
from wsss.backbones.frozen_norm import freeze_norms
from wsss.errors import WsssError

KEY = "segmentation.network"
# What wraps the names of a file: DataParallel, Lightning, and deeplab-pytorch's multi-scale module.
PREFIXES = ("module.", "network.", "scales.", "scale.", "base.")


class SegmentationNetwork(nn.Module):
    """Normalized RGB images (B, 3, H, W) in, logits (B, C, h, w) of background and classes out.

    Several scales are brought together outside (`wsss.segmentation.multi_scale`).

    Attributes:
        num_classes: channels of the logits, background included (21 for VOC).
        output_stride: pixels of the image per cell of the logits.
        mean: channel means, RGB, that images in [0, 1] are normalized with.
        std: their standard deviations.
        fixed_norms: whether batch normalization is frozen: stored statistics in training, too, and
            no gradient for its weights.
        initial_weights: what the weights were trained for before: `none`, `imagenet`, `coco`, or
            the name of a file.
        head: what the names of the head's parameters begin with.
        ignore: what names in files of weights begin with that this network has no use for.
    """

    num_classes: int
    output_stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fixed_norms: bool = True
    initial_weights: str = "none"
    head: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, h, w) of normalized images (B, 3, H, W)."""
        raise RuntimeError(f"{type(self).__name__} must implement forward")

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """All that learns, in groups for an optimizer.

        Args:
            lr: rate of the body.
            weight_decay: its weight decay.

        Returns:
            Dictionaries with `params`, `lr`, `weight_decay` and `name`; frozen parameters are in
            none, and no group is empty.
        """
        raise RuntimeError(f"{type(self).__name__} must implement parameter_groups")

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """As `nn.Module.train`, except that frozen batch normalization keeps its statistics."""
        super().train(mode)
        if self.fixed_norms:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def finish(self) -> None:
        """What every subclass does last: freeze batch normalization where it is fixed."""
        if self.fixed_norms:
            freeze_norms(self)
        self.train()

    def body_and_head(self) -> tuple[list[nn.Parameter], dict[str, nn.Parameter]]:
        """Parameters that learn: those of the body, and the head's by name."""
        learning = {n: p for n, p in self.named_parameters() if p.requires_grad}
        head = {n: p for n, p in learning.items() if n.startswith(self.head)}
        return [p for n, p in learning.items() if n not in head], head


def groups(*described: tuple[str, Sequence[nn.Parameter], float, float]) -> list[dict[str, Any]]:
    """Optimizer groups of (name, parameters, lr, weight decay); empty ones are left out."""
    return [
        {"params": list(params), "lr": lr, "weight_decay": decay, "name": name}
        for name, params, lr, decay in described
        if params
    ]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights of a file by name, without what a wrapper put before the names.

    Raises:
        WsssError: the file is missing or holds no weights.
    """
    if Path(path).suffix == ".params":
        raise WsssError(
            f"{KEY}.weights={path}: a file of MXNet, which is not read here; give it converted to "
            "PyTorch (.pth), as PSA's authors distribute it too"
        )
    try:
        state = read_state_dict(path)
    except (WsssError, AttributeError) as error:
        if isinstance(error, AttributeError):
            raise WsssError(f"{KEY}.weights={path}: no dictionary of weights") from error
        raise WsssError(str(error).replace("backbone.weights", f"{KEY}.weights")) from error
    result = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WsssError(f"{KEY}.weights={path}: {name} is no tensor; give a plain state dict")
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        result[name] = value
    return result


def fill(network: SegmentationNetwork, state: dict[str, Tensor], source: str) -> bool:
    """Put weights into a network: the body whole, the head where the file has just this head.

    Weights trained for something else come with no head, or with one of other classes. The head
    then stays as it was initialized.

    Args:
        network: the network to fill.
        state: tensors by name, as `read_weights` gives them.
        source: what to call the file in a message.

    Returns:
        Whether the head was filled, too.

    Raises:
        WsssError: tensors of the body are missing, unknown or of another shape.
    """
    own = network.state_dict()
    head = [n for n in own if n.startswith(network.head)]
    with_head = all(n in state and state[n].shape == own[n].shape for n in head)
    passed_over = network.ignore if with_head else (*network.ignore, *network.head)
    state = {n: v for n, v in state.items() if n in own or not n.startswith(passed_over)}
    if not with_head:
        state = {n: v for n, v in state.items() if not n.startswith(network.head)}
    wanted = [n for n in own if with_head or n not in head]
    faults = {
        "missing": [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")],
        "unknown": [n for n in state if n not in own],
        "of another shape": [
            f"{n} {tuple(v.shape)}, not {tuple(own[n].shape)}"
            for n, v in state.items()
            if n in own and v.shape != own[n].shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in faults.items()
            if names
        )
        raise WsssError(f"{KEY}.weights={source}: weights of another network: {told}")
    network.load_state_dict(state, strict=False)
    return with_head
