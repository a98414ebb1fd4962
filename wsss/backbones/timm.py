"""Any timm network with `features_only` as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import timm
from torch import Tensor

from wsss.backbones.base import Backbone, downloading, load_weights, read_state_dict, rgb
from wsss.errors import WsssError


class Timm(Backbone):
    """The last four feature stages of a timm network.

    Args:
        name: timm's model name, for example `tf_efficientnet_lite0`.
        weights: path of a state dict with timm's names (`.safetensors`, `.pth`), `imagenet` for
            timm's own download, or None for random weights.
        output_stride: stride of the last stage.
        frozen_stages: stages without gradient, counted from the input.
        freeze_depthwise: keep depthwise kernels as they are (quicker on a CPU).
        norm: `fixed` keeps the stored batch statistics; `batch` takes those of the batch, for
            training from nothing.
        mean: channel means for normalization; null takes the network's own.
        std: likewise the standard deviations.

    Raises:
        WsssError: timm does not know the name, the network can't give four feature stages at this
            stride, or the weights don't fit.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        output_stride: int = 16,
        frozen_stages: int = 2,
        freeze_depthwise: bool = False,
        norm: Literal["fixed", "batch"] = "fixed",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = timm.list_models(f"*{name[:8]}*")[:3]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise WsssError(f"backbone.name={name}: timm has no network of this name{hint}")
        try:
            network: Any = timm.create_model(name, features_only=True, output_stride=output_stride)
        except Exception as error:
            raise WsssError(
                f"backbone.name={name}: timm gives no features at output stride {output_stride} "
                f"({str(error).splitlines()[0]})"
            ) from error
        info = network.feature_info
        channels, strides = info.channels(), info.reduction()
        if len(channels) < 4:
            raise WsssError(
                f"backbone.name={name}: {len(channels)} feature stages, four are needed"
            )
        if weights == "imagenet":
            with downloading(name):
                pretrained = timm.create_model(
                    name, pretrained=True, features_only=True, output_stride=output_stride
                )
            network.load_state_dict(pretrained.state_dict())
        elif weights is not None:
            # Classification layers behind the last feature are not part of this network.
            own = set(network.state_dict())
            state = {n.removeprefix("module."): v for n, v in read_state_dict(weights).items()}
            kept = {n: v for n, v in state.items() if n in own}
            dropped = {n.split(".")[0] for n in state if n not in own}
            load_weights(network, kept or state, str(weights), ignore=tuple(dropped))
        self.network = network
        self.channels = tuple(channels[-4:])
        self.strides = tuple(strides[-4:])
        self._stem = max(len(channels) - 5, 0)
        self.stem_channels, self.stem_stride = channels[self._stem], strides[self._stem]
        own_input: Any = getattr(network, "default_cfg", {})
        self.mean = rgb(mean if mean is not None else own_input.get("mean", (0.5,) * 3), "mean")
        self.std = rgb(std if std is not None else own_input.get("std", (0.5,) * 3), "std")
        self.finish(norm, frozen_stages, freeze_depthwise)

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        """Stem and four stages; a network of four stages gives its first one as the stem too."""
        features = self.network(image)
        return [features[self._stem], *features[-4:]]
