"""What every backbone answers: the features of four stages, with fixed batch statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from wsss.backbones.depthwise import accelerate_depthwise
from wsss.errors import WsssError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Weights that come with the package, by the word that stands for them in `backbone.weights`.
SHIPPED = {"scenes": Path(__file__).with_name("scenes.safetensors")}


class Backbone(nn.Module):
    """An image network seen as a stem and four stages (strides 4, 8, 16, 16).

    Subclasses set `channels`, `strides`, `stem_channels`, `stem_stride` and implement
    `forward_with_stem`. BatchNorm uses its stored statistics, in training too, and its affine
    weights train wherever their stage does; a network that starts from nothing has no statistics
    to keep, and takes those of the batch (`norm="batch"`).

    Attributes:
        channels: channel count of the four stages.
        strides: their strides with respect to the input.
        stem_channels: channel count of the stem's output.
        stem_stride: its stride.
        mean: channel means that input images are normalized with.
        std: their standard deviations.
    """

    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    stem_channels: int
    stem_stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_statistics: bool = False

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        """Features of the stem and the four stages for normalized images (B, 3, H, W)."""
        raise RuntimeError(f"{type(self).__name__} must implement forward_with_stem")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of the four stages, each (B, C, h, w), for normalized images (B, 3, H, W)."""
        return self.forward_with_stem(image)[1:]

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, except that batch normalization keeps its stored statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode and self.batch_statistics)
        return self

    def finish(self, norm: str, frozen_stages: int, freeze_depthwise: bool) -> None:
        """What every subclass does last: choose the statistics and freeze the first stages.

        Args:
            norm: `fixed` (stored statistics) or `batch` (for training from nothing).
            frozen_stages: see `freeze`.
            freeze_depthwise: see `freeze`.

        Raises:
            WsssError: unknown `norm`, or batch statistics in a network that is partly frozen.
        """
        if norm not in ("fixed", "batch"):
            raise WsssError(f"backbone.norm={norm}: choose fixed or batch")
        if norm == "batch" and frozen_stages:
            raise WsssError(
                "backbone.norm=batch trains from nothing: set backbone.frozen_stages=0 as well"
            )
        self.freeze(frozen_stages, depthwise=freeze_depthwise)
        self.batch_statistics = norm == "batch"
        self.train(self.training)

    def freeze(self, stages: int, depthwise: bool = False) -> None:
        """Stop the gradient after the stem and the first `stages` stages.

        Which parameters feed a stage is read off the autograd graph, so it holds for any network.

        Args:
            stages: 0 freezes nothing, 1 the stem and stage 1, ... 4 everything.
            depthwise: also keep every depthwise kernel as it is. Their weight gradients are the
                slowest part of a training step on a CPU and change the maps little.

        Raises:
            WsssError: `stages` is not in 0..4.
        """
        if not 0 <= stages <= 4:
            raise WsssError(f"backbone.frozen_stages={stages}: choose 0 (all learn) to 4 (none)")
        if stages:
            self._freeze_up_to(stages)
        if depthwise:
            for module in self.modules():
                if isinstance(module, nn.Conv2d) and module.groups > 1:
                    module.weight.requires_grad_(False)
        accelerate_depthwise(self)

    def freeze_stem(self) -> None:
        """Stop the gradient after the stem; the four stages learn as before."""
        self._freeze_up_to(0)

    def _freeze_up_to(self, index: int) -> None:
        """Freeze what feeds the stem's feature (0) or that of a stage (1 to 4)."""
        self.train(self.training)  # the probe must not touch the stored statistics
        probe = torch.zeros(1, 3, 64, 64)
        feature = self.forward_with_stem(probe)[index]
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not feature.requires_grad:
            return  # frozen before
        grads = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter.requires_grad_(False)

    def folded(self) -> Backbone:
        """A copy for inference with every batch normalization folded into its convolution.

        Gives the same features up to rounding, in about half the time on a CPU. Which convolution
        feeds which normalization is observed on one forward pass.
        """
        network = copy.deepcopy(self).eval()
        feeds: dict[nn.Module, nn.Conv2d] = {}
        producer: dict[int, nn.Conv2d] = {}
        alive: list[Tensor] = []  # keeps ids of outputs from being used twice

        def remember(module: nn.Module, _: object, output: Tensor) -> None:
            producer[id(output)] = module  # type: ignore[assignment]
            alive.append(output)

        def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in producer:
                feeds[module] = producer[id(inputs[0])]

        handles = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                handles.append(module.register_forward_hook(remember))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(match))
        parameter = next(network.parameters())
        with torch.no_grad():
            network.forward_with_stem(
                torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype)
            )
        for handle in handles:
            handle.remove()
        for norm, conv in feeds.items():
            _fold(conv, norm)  # type: ignore[arg-type]
        return network


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Move the affine map of `norm` into `conv`, leaving an identity (plus activation) behind."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    with torch.no_grad():
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        bias = shift if conv.bias is None else conv.bias * scale + shift
        conv.bias = nn.Parameter(bias, requires_grad=False)
    after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
    norm.forward = after.forward  # type: ignore[method-assign]


def weights_file(weights: str | Path) -> Path:
    """The file that `backbone.weights` names: one that comes with the package, or the user's."""
    return SHIPPED.get(str(weights), Path(weights).expanduser())


def read_state_dict(weights: str | Path) -> dict[str, Tensor]:
    """Weights from a `.safetensors` or PyTorch file (a bare state dict, or under `state_dict`).

    Raises:
        WsssError: the file is missing or can't be read as weights.
    """
    path = weights_file(weights)
    if not path.is_file():
        raise WsssError(
            f"backbone.weights={path}: no such file; give the path of a .safetensors or .pth file, "
            "'imagenet' for the library's own download, or null to start from scratch"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WsssError(f"backbone.weights={path}: can't be read as weights ({first})") from error
    return state.get("state_dict", state)


def rgb(values: Sequence[float], key: str) -> tuple[float, float, float]:
    """Three numbers, one for each color channel; `key` names them in the message."""
    if len(values) != 3:
        raise WsssError(f"backbone.{key}={list(values)}: give three numbers, one for each channel")
    red, green, blue = values
    return float(red), float(green), float(blue)


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Turn a failed download of ImageNet weights into one line with the way out."""
    try:
        yield
    except Exception as error:
        raise WsssError(
            f"backbone.weights=imagenet: the weights of {name} can't be downloaded "
            f"({type(error).__name__}); give backbone.weights=FILE, or null to start from scratch"
        ) from error


def load_weights(
    network: nn.Module, state: dict[str, Tensor], source: str, ignore: Sequence[str] = ()
) -> None:
    """Load `state` into `network`, letting only the classifier's own names go unused.

    Args:
        network: the network to fill; every one of its tensors must be in `state`.
        state: names and tensors.
        source: what to call the file in a message.
        ignore: prefixes of names in `state` that the network does without.

    Raises:
        WsssError: names are missing or left over, or shapes differ; the first one is named.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = network.state_dict()
    wrong = [n for n in own if n in state and own[n].shape != state[n].shape]
    if wrong:
        raise WsssError(
            f"backbone.weights={source}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, "
            f"this backbone needs {tuple(own[wrong[0]].shape)}; is it the file of another network?"
        )
    result = network.load_state_dict(state, strict=False)
    missing = [n for n in result.missing_keys if not n.endswith("num_batches_tracked")]
    left = [n for n in result.unexpected_keys if not n.startswith(tuple(ignore))]
    if missing or left:
        what = f"misses {missing[0]}" if missing else f"has {left[0]}, unknown to this backbone"
        raise WsssError(
            f"backbone.weights={source}: {what} ({len(missing)} missing, {len(left)} unknown); "
            "is it the file of another network?"
        )


def he_init(module: nn.Module) -> None:
    """Convolutions of a body without weights: He's normal distribution (fan out, ReLU)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
