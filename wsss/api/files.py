"""Finished models from run folders, checkpoints and single files, and into single files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wsss.api.models import ENDING, METADATA, Model, SeedModel, SegmentationModel
from wsss.build.blueprint import (
    SeedBlueprint,
    SegmenterBlueprint,
    read_blueprint,
    seed_blueprint,
    segmenter_blueprint,
)
from wsss.build.compose import compose_settings
from wsss.build.objects import assemble_network, build_image_set, first_fault, load_network
from wsss.build.segmenter import Trained, assemble_segmenter, load_trained
from wsss.build.settings import Settings
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.hosts.released import read_checkpoint
from wsss.run.callbacks import BLUEPRINT, CHECKPOINT
from wsss.run.folder import MANIFEST


def load(
    path: str | Path,
    *overrides: str,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    trust: bool = False,
) -> Model:
    """A finished model.

    Args:
        path: a model file (`.safetensors`, of `save`), a checkpoint (`last.ckpt`), the folder of a
            stage (`train`, `seg_train`) or of a run: its segmentation network where there is one,
            else its seed network.
        overrides: for a file that does not say what it belongs to (published checkpoints of SIPE,
            IRN, AMN and MCTformer, those of other versions): settings as on the command line, such
            as "experiment=sipe_voc". A model file takes none.
        classes: for such a file the foreground class names; None: those of its data set.
        device: where to; None: a GPU where there is one.
        trust: whether a file may name parts of other packages, which are imported: that runs code.
            Files of this project's own parts need no trust, wherever they come from.

    Returns:
        A `SeedModel` or a `SegmentationModel`.

    Raises:
        WsssError: there is no finished model, the file is damaged or does not say what it is.
    """
    where = Path(path).expanduser()
    found = _checkpoint_in(where) if where.is_dir() else where
    if overrides:
        model = _load_by_settings(found, overrides, classes)
    elif found.suffix == ENDING:
        model = _load_file(found, trust)
    elif found.name == MANIFEST:
        blueprint = read_json(found).get(BLUEPRINT)
        model = _assemble(_checked(blueprint, found), None, found, trust)
    else:
        content = _read_checkpoint(found)
        blueprint = _checked(content.get(BLUEPRINT), found)
        model = _assemble(blueprint, content["state_dict"], found, trust)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def save(model: Model, path: str | Path) -> Path:
    """Write a model as one file, see `Model.save`."""
    return model.save(path)


def _checkpoint_in(folder: Path) -> Path:
    """The checkpoint, or the manifest of a host that learns nothing, in a folder of results.

    Raises:
        WsssError: there is none, or several.
    """
    model = folder / "model.safetensors"
    if model.is_file():
        return model
    inner = sorted(p for p in folder.iterdir() if p.is_dir())
    for places in ([folder], [folder / "seg_train"], [folder / "train"]):
        if found := _finished(places):
            return found[0]
    for stage in ("seg_train", "train"):  # the folder of a run name: its settings lie one deeper
        found = _finished([one / stage for one in inner])
        if len(found) > 1:
            told = ", ".join(str(path.parent.relative_to(folder)) for path in found[:3])
            raise WsssError(f"{folder}: holds {len(found)} models ({told}); name one of them")
        if found:
            return found[0]
    raise WsssError(
        f"{folder}: no finished model; give a folder in which stage=train or stage=seg_train has "
        "ended, or a file"
    )


def _finished(stages: Sequence[Path]) -> list[Path]:
    found = []
    for stage in stages:
        if (stage / CHECKPOINT).is_file():
            found.append(stage / CHECKPOINT)
        elif (stage / MANIFEST).is_file() and read_json(stage / MANIFEST).get(BLUEPRINT):
            found.append(stage / MANIFEST)
    return found


def _checked(blueprint: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(blueprint, Mapping):
        raise WsssError(
            f"{path}: does not say what network it belongs to, as files of version 0.1 and other "
            'projects; give its settings too: wsss.load(FILE, "experiment=NAME", ...)'
        )
    return blueprint


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise WsssError(f"{path}: no such file or folder")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail in any way
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WsssError(f"{path}: can't be read as a checkpoint ({first[:200]})") from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        _checked(None, path)
    return content


def _load_file(path: Path, trust: bool) -> Model:
    if not path.is_file():
        raise WsssError(f"{path}: no such file or folder")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            blueprint = json.loads(about[METADATA]) if METADATA in about else None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WsssError(f"{path}: can't be read as a model file ({error})") from error
    return _assemble(_checked(blueprint, path), tensors, path, trust)


def _assemble(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None, path: Path, trust: bool
) -> Model:
    """The model of a blueprint, filled with tensors; None: with its host's own weights."""
    blueprint = read_blueprint(content, str(path), trust)
    if isinstance(blueprint, SegmenterBlueprint):
        segmenter, _ = assemble_segmenter(blueprint, blueprint.classes, None, fresh=False)
        _fill(segmenter, tensors or {}, path)
        return SegmentationModel(segmenter, blueprint.segmentation, content)
    assert isinstance(blueprint, SeedBlueprint)
    network = assemble_network(blueprint, blueprint.classes, pretrained=False)
    if tensors is not None:
        _fill(network, tensors, path)
    return SeedModel(network, blueprint.use, content, blueprint.refreshed)


@torch.no_grad()
def _fill(network: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network; of buffers that no state dict has there may be any."""
    own = network.state_dict()
    hidden = {n: v for n, v in network.named_buffers() if n not in own}
    try:
        network.load_state_dict({n: v for n, v in tensors.items() if n not in hidden})
        for name, value in hidden.items():
            if name in tensors:
                value.copy_(tensors[name])
    except RuntimeError as error:
        raise WsssError(f"{path}: damaged or of another version ({first_fault(error)})") from error


def _load_by_settings(path: Path, overrides: Sequence[str], classes: Sequence[str] | None) -> Model:
    """A model whose file does not say what it belongs to, by the settings of the command line."""
    s = compose_settings(overrides)
    if path.suffix == ENDING or path.name == MANIFEST:
        raise WsssError(f"{path}: says itself what it is; leave {overrides[0]} out")
    if _is_segmenter(path):
        return _segmenter_by_settings(path, s, classes)
    _, noted = read_checkpoint(path)
    known = tuple(classes or noted or build_image_set(s).classes)
    network = load_network(s, path, known)
    blueprint = seed_blueprint(s, known)
    use = read_blueprint(blueprint, str(path), trust=True)
    assert isinstance(use, SeedBlueprint)
    return SeedModel(network, use.use, blueprint)


def _is_segmenter(path: Path) -> bool:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what reads it next tells what is wrong
        return False
    return isinstance(content, Mapping) and "segmentation" in content


def _segmenter_by_settings(path: Path, s: Settings, classes: Sequence[str] | None) -> Model:
    note = _read_checkpoint(path)["segmentation"]
    known = tuple(classes or note.get("class_names") or build_image_set(s).classes)
    begins_with = note.get("initial_weights", "unknown")
    segmenter, _ = load_trained(s, Trained(path, "", known, begins_with), "load")
    return SegmentationModel(segmenter, s.segmentation, segmenter_blueprint(s, known, begins_with))
