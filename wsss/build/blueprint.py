"""What a network is built from, kept with its weights: whoever has the file needs no settings.

A blueprint is plain content (JSON will do) with the keys of the configuration. It names no file of
the machine that trained, except the weights of a host that learns nothing, whose checkpoint has
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from wsss.backbones.base import Backbone
from wsss.build.components import TARGET, Component, component
from wsss.build.settings import Method, SeedCrf, Settings, TrainerSettings, plain
from wsss.errors import WsssError
from wsss.hosts.base import Host
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.base import Branch
from wsss.segmentation.settings import SegmentationSettings
from wsss.settings import Count, Positive, Share, Whole, resolve, settings

FORMAT = 1  # goes up with a change that older versions can't read


@settings
class SeedUse:
    """How class maps are made of a photograph, and seeds of class maps.

    Attributes:
        scales: test-time scales (`data.scales`).
        long_side: long side that counts as scale 1, pixels; None: the photograph's own
            (`data.infer_long_side`).
        stride: pixels per cell of the maps (`make_cam.stride`).
        kind: which kind of map is the seed; None: the method's own (`refine.kind`).
        background: constant background of maps without a channel for it (`eval_cam.background`).
        crf: the dense CRF on seeds (`refine.crf`).
    """

    scales: tuple[Positive, ...] = (1.0,)
    long_side: Count | None = None
    stride: Count = 4
    kind: str | None = None
    background: Share = 0.15
    crf: SeedCrf = SeedCrf()


@settings
class SeedBlueprint:
    """What a seed network is built from; the fields are keys of the configuration.

    Attributes:
        network: tells it from other blueprints.
        format: version of the blueprint.
        classes: foreground class names in the order of their ids.
        seed: of new layers and k-means.
        backbone: feature network.
        host: what makes class maps.
        method: what supervises or replaces them.
        optimizer: how both learnt.
        use: how class maps are made.
        refreshed: whether the method's state is that of its final weights (see
            `wsss.SeedModel.refresh`).
        trainer: memory format.
    """

    network: Literal["seeds"] = "seeds"
    format: Whole = FORMAT
    classes: tuple[str, ...]
    seed: Whole = 0
    backbone: Component
    host: Component
    method: Method
    optimizer: OptimizerSettings
    use: SeedUse = SeedUse()
    refreshed: bool = False
    trainer: TrainerSettings = TrainerSettings()


@settings
class SegmenterBlueprint:
    """What a segmentation network is built from; the fields are keys of the configuration.

    Attributes:
        network: tells it from other blueprints.
        format: version of the blueprint.
        classes: foreground class names in the order of their ids.
        seed: of new layers.
        backbone: feature network, where the network stands on one.
        segmentation: the network and its use.
        initial_weights: what its training started from.
        trainer: memory format.
    """

    network: Literal["segmentation"] = "segmentation"
    format: Whole = FORMAT
    classes: tuple[str, ...]
    seed: Whole = 0
    backbone: Component
    segmentation: SegmentationSettings
    initial_weights: str = "unknown"
    trainer: TrainerSettings = TrainerSettings()


def seed_blueprint(s: Settings, classes: tuple[str, ...]) -> dict[str, Any]:
    """Blueprint of the seed network that the settings describe."""
    host = plain(s.host)
    learns = s.host.make.trains  # type: ignore[attr-defined]
    files = [n for n in host if n in ("labels", "maps") or (learns and n.endswith("weights"))]
    return {
        "network": "seeds",
        "format": FORMAT,
        "classes": list(classes),
        "seed": s.seed,
        "backbone": {**plain(s.backbone), "weights": None},
        "host": {**host, **dict.fromkeys(files)},
        "method": plain(s.method),
        "optimizer": plain(s.optimizer),
        "use": {
            "scales": list(s.data.scales),
            "long_side": s.data.infer_long_side,
            "stride": s.make_cam.stride,
            "kind": s.refine.kind,
            "background": s.eval_cam.background,
            "crf": plain(s.refine.crf),
        },
    }


USED = ("msc", "msc_scales", "long_side", "predict")  # of `segmentation`, by a network
USED_EVAL = ("scales", "mirror", "fuse", "align_corners", "crf")  # of `segmentation.eval`


def used_by_segmenter(settings: SegmentationSettings) -> dict[str, Any]:
    """Those of the settings that a trained network and its use depend on, as plain content."""
    options = plain(settings)
    return {
        **{key: options[key] for key in USED},
        "network": {**options["network"], "weights": None},
        "eval": {key: options["eval"][key] for key in USED_EVAL},
    }


def segmenter_blueprint(
    s: Settings, classes: tuple[str, ...], initial_weights: str
) -> dict[str, Any]:
    """Blueprint of the segmentation network that the settings describe."""
    return {
        "network": "segmentation",
        "format": FORMAT,
        "classes": list(classes),
        "seed": s.seed,
        "backbone": {**plain(s.backbone), "weights": None},
        "segmentation": used_by_segmenter(s.segmentation),
        "initial_weights": initial_weights,
    }


def read_blueprint(
    content: Mapping[str, Any], source: str, trust: bool = False
) -> SeedBlueprint | SegmenterBlueprint:
    """A blueprint from its plain content.

    Args:
        content: as `seed_blueprint` or `segmenter_blueprint` made it.
        source: the file, for messages.
        trust: whether parts of other packages may be imported, which runs their code.

    Raises:
        WsssError: it is of a later version, names a part of another package without `trust` or
            something that is no such part, or is damaged.
    """
    if content.get("format") != FORMAT:
        raise WsssError(
            f"{source}: its blueprint has format {content.get('format')}, this version reads "
            f"{FORMAT}; update wsss, or save the model with this version"
        )
    given = dict(content)
    try:
        given["backbone"] = _part(given.get("backbone"), "backbone", Backbone, trust)
        if given.get("network") == "segmentation":
            return resolve(SegmenterBlueprint, given)
        given["host"] = _part(given.get("host"), "host", Host, trust)
        method = given.get("method") or {}
        branch = _part(method, "method", Branch, trust) if TARGET in method else None
        given["method"] = Method(str(method.get("name")), branch)
        return resolve(SeedBlueprint, given)
    except WsssError as error:
        if "unknown key" not in str(error):
            raise WsssError(f"{source}: {error}") from error
        raise WsssError(
            f"{source}: {error}; it was made by another version: load its checkpoint with settings "
            'of this one, wsss.load("last.ckpt", "experiment=NAME")'
        ) from error


def _part(content: Any, key: str, kind: type, trust: bool) -> Component:
    """A part of a kind, and the parts in it; nothing of another package is imported untrusted."""
    for target in _targets(content):
        if not trust and target.partition(".")[0] != "wsss":
            raise WsssError(
                f"{key} is {target}, which is no part of wsss; trust=True imports it, which runs "
                "its code"
            )
    found = component(content, key)
    for part in (found, *_inner(found.options)):
        if not (isinstance(part.make, type) and issubclass(part.make, kind)):
            raise WsssError(f"{key} is {part.target}, which is no {kind.__name__}")
    return found


def _targets(content: Any) -> Iterator[str]:
    """All that plain content names as a class or function."""
    if isinstance(content, Mapping):
        if TARGET in content:
            yield str(content[TARGET])
        for value in content.values():
            yield from _targets(value)


def _inner(value: Any) -> Iterator[Component]:
    """The components in the options of one."""
    if isinstance(value, Component):
        yield value
        value = value.options
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _inner(one)
