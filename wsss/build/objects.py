"""From settings to the objects that a stage works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from wsss.backbones.base import Backbone
from wsss.build.blueprint import seed_blueprint
from wsss.build.components import Component
from wsss.build.settings import Method, Settings, TrainerSettings
from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochData, EpochSet, ReadMaps, WholeSet, labels_of
from wsss.data.transforms import Pyramid
from wsss.errors import WsssError
from wsss.hosts.base import Host
from wsss.hosts.optimizer import OptimizerSettings
from wsss.hosts.released import read_checkpoint
from wsss.methods.network import SeedNetwork
from wsss.run.compute import choose_memory_format
from wsss.run.folder import check_classes


def build_image_set(s: Settings) -> ImageSet:
    """The data set that `data.image_set` describes."""
    return s.data.image_set()


class Parts(Protocol):
    """What networks are built of: the settings of a run, or what a checkpoint tells of them."""

    @property
    def seed(self) -> int:
        """Seed of new layers."""
        ...

    @property
    def backbone(self) -> Component:
        """Feature network."""
        ...

    @property
    def trainer(self) -> TrainerSettings:
        """Its memory format."""
        ...


class SeedParts(Parts, Protocol):
    """What a seed network is built of."""

    @property
    def host(self) -> Component:
        """What makes class maps."""
        ...

    @property
    def method(self) -> Method:
        """What supervises or replaces them."""
        ...

    @property
    def optimizer(self) -> OptimizerSettings:
        """How both learn."""
        ...


def build_backbone(s: Parts, pretrained: bool = True) -> Backbone:
    """The backbone; without its initial weights when a checkpoint will fill it anyway."""
    torch.manual_seed(s.seed)
    return s.backbone() if pretrained else s.backbone(weights=None)


def build_host(s: SeedParts, classes: tuple[str, ...], pretrained: bool = True) -> Host:
    """The host, on its backbone where it stands on one; its new layers drawn from the seed."""
    parts: dict[str, Any] = {"classes": classes}
    if s.host.make.on_backbone:  # type: ignore[attr-defined]
        parts["backbone"] = build_backbone(s, pretrained)
    elif s.host.takes("pretrained"):
        parts["pretrained"] = pretrained
    torch.manual_seed(s.seed)
    return s.host(**parts)


def build_network(s: Settings, classes: tuple[str, ...], pretrained: bool = True) -> SeedNetwork:
    """Host and method, new layers drawn from the seed.

    Args:
        s: the settings.
        classes: foreground class names.
        pretrained: whether to load initial weights; a checkpoint that fills all needs none.
    """
    network = assemble_network(s, classes, pretrained)
    network.blueprint = seed_blueprint(s, classes)
    return network


def assemble_network(s: SeedParts, classes: tuple[str, ...], pretrained: bool) -> SeedNetwork:
    """`build_network` from its parts alone."""
    host = build_host(s, classes, pretrained)
    branch = None
    if s.method.branch is not None:
        branch = s.method.branch(channels=host.channels, num_classes=len(classes), seed=s.seed)
    return SeedNetwork(host, branch, s.optimizer, choose_memory_format(s.trainer.memory_format))


def load_network(s: Settings, checkpoint: Path | None, classes: tuple[str, ...]) -> SeedNetwork:
    """Host and method with the weights (and buffers) of a checkpoint, ours or SIPE's or IRN's.

    Args:
        s: the settings.
        checkpoint: the file; None: a host that learns nothing, with its initial weights.
        classes: foreground class names of the data set.

    Raises:
        WsssError: the file is missing, broken, or of another method, backbone or classes.
    """
    if checkpoint is None:
        return build_network(s, classes).eval()
    state, noted = read_checkpoint(checkpoint)
    check_classes(str(checkpoint), noted, classes)
    network = build_network(s, classes, pretrained=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WsssError(
            f"{checkpoint}: not a checkpoint of host={_name(s)} method={s.method.name} with this "
            f"backbone and {len(classes)} classes ({first_fault(error)})"
        ) from error
    return network.eval()


def _name(s: Settings) -> str:
    return s.host.target.rpartition(".")[2].lower()


def first_fault(error: BaseException) -> str:
    """The first thing that `load_state_dict` complains of."""
    lines = str(error).splitlines() or [type(error).__name__]
    return (lines[1] if len(lines) > 1 else lines[0]).strip()[:200]


def whole_set(
    s: Settings,
    image_set: ImageSet,
    host: Host,
    split: str,
    scales: tuple[float, ...],
    picture: bool = False,
) -> WholeSet:
    """Whole images of a split with their labels, at some scales, as a host wants them."""
    names = image_set.names(split)
    inputs = Pyramid(
        host.mean, host.std, scales, long_side=s.data.infer_long_side, size=host.test_size
    )
    labels, targets = labels_of(image_set, split, names), _targets(host)
    return WholeSet(image_set, names, inputs, labels, targets, picture, maps=_maps(host))


def training_data(s: Settings, image_set: ImageSet, host: Host) -> EpochData:
    """Loaders of stage=train; no mask of the data set is ever read."""
    split = s.data.train_split
    names = image_set.names(split)
    train = EpochSet(
        image_set,
        names,
        host.crop(s.data.crop_size, s.data.long_side),
        s.seed,
        labels_of(image_set, split, names),
        _targets(host),
        _maps(host),
    )
    whole = whole_set(s, image_set, host, split, (1.0,))
    return EpochData(train, whole, s.data.batch_size, num_workers=s.data.num_workers)


def _targets(host: Host) -> Path | None:
    """Folder of the label maps that a host reads."""
    return Path(host.options.labels).expanduser() if host.reads_labels else None


def _maps(host: Host) -> ReadMaps | None:
    """Gives the class maps of an earlier run that a host reads."""
    return host.read_maps if host.reads_maps else None
