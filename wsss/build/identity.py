"""What a result is known by: settings that act on it, and the content of all that is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsss.backbones.base import weights_file
from wsss.build.settings import Settings, plain
from wsss.data.base import ImageSet, missing_files
from wsss.data.datamodule import labels_of
from wsss.errors import WsssError
from wsss.hosts.base import Host
from wsss.run.compute import choose_memory_format, choose_precision
from wsss.run.fingerprint import Fingerprints, joint
from wsss.run.folder import MANIFEST, require
from wsss.run.group import led
from wsss.segmentation.settings import ON_BACKBONE

INDEX = "fingerprints.json"


@led
def fingerprints(s: Settings, paths: Sequence[Path], what: str = "files") -> list[str]:
    """Hashes of files, by the index of this cache; of several processes only main reads them."""
    return Fingerprints(Path(s.paths.cache).expanduser() / INDEX).of(paths, what)


def images_of(s: Settings, image_set: ImageSet, split: str, labels: bool = True) -> dict[str, str]:
    """The images of a split as an input of a stage: names, contents and, if read, labels.

    Raises:
        WsssError: images are missing.
    """
    image_set.check(split)
    names = image_set.names(split)
    paths = [image_set.image_path(name) for name in names]
    parts = [*image_set.classes, *names, *fingerprints(s, paths, f"the images of {split}")]
    if labels:
        parts.append(labels_of(image_set, split, names).tobytes().hex())
    return {f"images of {split}": joint(parts)}


def masks_of(s: Settings, image_set: ImageSet, split: str) -> dict[str, str]:
    """The masks of a split, as far as there are any, as an input of a stage that scores."""
    try:
        names = image_set.names(split)
    except WsssError:  # a split that is only scored need not be there
        return {}
    paths = [path for name in names if (path := image_set.mask_path(name)) is not None]
    if not paths:
        return {}
    hashes = fingerprints(s, paths, f"the masks of {split}")
    return {f"masks of {split}": joint([*names, *hashes])}


def given_of(s: Settings, image_set: ImageSet, split: str, wanted_by: str) -> dict[str, str]:
    """What a host reads of an earlier run for each image of a split, as an input of a stage.

    Returns:
        Nothing for a host that reads nothing.

    Raises:
        WsssError: the folder is not given or lacks some, or they were made for other classes.
    """
    host: type[Host] = s.host.make  # type: ignore[assignment]
    names = image_set.names(split)
    inputs: dict[str, str] = {}
    for key in given_keys(host):
        what, suffix, stage, folder_of_stage = GIVEN[key]
        given = getattr(s.host.options["options"], key)
        if not given:
            raise WsssError(
                f"host.{key}: is not given; it is a folder of {what} NAME{suffix}, such as the "
                f"folder {stage}/{folder_of_stage} of an earlier run"
            )
        folder = Path(given).expanduser()
        missing = missing_files([folder / f"{name}{suffix}" for name in names])
        if missing:
            raise WsssError(
                f"host.{key}={folder}: {len(missing)} of {len(names)} {what} are missing, for "
                f"instance {missing[0].name}; make them by stage={stage} over the same images"
            )
        if (folder.parent / MANIFEST).is_file():
            require(folder.parent, stage, wanted_by, image_set.classes)
        inputs |= files_of(s, f"{what} of {split}", folder, names, suffix)
    return inputs


# Key of the group host: what lies in the folder, its suffix, the stage and its folder.
GIVEN = {
    "labels": ("label maps", ".png", "irn_labels", "labels"),
    "maps": ("class maps", ".npz", "make_cam", "maps"),
}


def given_keys(host: type[Host]) -> list[str]:
    """Those of the host's keys that name a folder with one file for each image."""
    return ["labels"] * host.reads_labels + ["maps"] * host.reads_maps


def files_of(s: Settings, what: str, folder: Path, names: list[str], suffix: str) -> dict[str, str]:
    """Files NAME + suffix of a folder as an input of a stage."""
    hashes = fingerprints(s, [folder / f"{name}{suffix}" for name in names], what)
    return {what: joint([*names, *hashes])}


def file_hash(s: Settings, path: str | Path) -> str:
    """Hash of one file's content; `-` where it is not there."""
    return fingerprints(s, [Path(path).expanduser()])[0]


def training_identity(s: Settings) -> dict[str, Any]:
    """All that the result of a training depends on."""
    data = plain(s.data)
    return {
        "data": {
            k: data[k] for k in ("name", "train_split", "crop_size", "long_side", "batch_size")
        },
        "host": host_identity(s),
        "method": {"name": s.method.name, **method_options(s)[0]},
        "backbone": backbone_identity(s),
        "optimizer": plain(s.optimizer),
        "training": plain(s.training),
        "trainer": trainer_identity(s),
        "seed": s.seed,
    }


def method_options(s: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the method: those that a training depends on, and those of map making alone."""
    return _split(plain(s.method.branch)) if s.method.branch else ({}, {})


def _split(method: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    trained = {key: value for key, value in method.items() if key != "test"}
    if "branches" not in method:
        return trained, method.get("test", {})
    parts = {name: _split(one) for name, one in method["branches"].items()}
    trained["branches"] = {name: part[0] for name, part in parts.items()}
    return trained, {name: part[1] for name, part in parts.items()}


def host_identity(s: Settings) -> dict[str, Any]:
    """The host; files that its options name by their content; what `given_of` knows is an input."""
    host = plain(s.host)
    for key in given_keys(s.host.make):  # type: ignore[arg-type]
        host.pop(key)
    for key, value in host.items():
        if key.endswith("weights"):
            host[key] = weights_identity(s, value)
    return host


def backbone_identity(s: Settings) -> dict[str, Any]:
    """The backbone; its weights by name and content, wherever they lie."""
    return {**plain(s.backbone), "weights": weights_identity(s, s.backbone.options.get("weights"))}


def weights_identity(s: Settings, weights: str | None) -> str | None:
    """A file of initial weights by name and content; other words as they are."""
    path = weights_file(weights) if weights else None
    if path is None or not path.is_file():
        return weights
    return f"{path.name} {file_hash(s, path)}"


def trainer_identity(s: Settings) -> dict[str, Any]:
    """What of the trainer acts on a result."""
    return {
        "precision": choose_precision(str(s.trainer.precision), s.trainer.accelerator),
        "memory_format": choose_memory_format(s.trainer.memory_format),
        "deterministic": s.trainer.deterministic,
        "limit_train_batches": s.trainer.limit_train_batches,
    }


def map_identity(s: Settings) -> dict[str, Any]:
    """All that class maps depend on, the training apart."""
    data = plain(s.data)
    return {
        "make_cam": {k: v for k, v in plain(s.make_cam).items() if k != "pictures"},
        "test": method_options(s)[1],
        "data": {k: data[k] for k in ("infer_split", "scales", "infer_long_side")},
    }


def irn_identity(s: Settings) -> dict[str, Any]:
    """All that IRN's trained heads depend on, the labels apart."""
    return {
        "irn": plain(s.refine.irn),
        "backbone": backbone_identity(s),
        "trainer": trainer_identity(s),
        "seed": s.seed,
    }


def psa_identity(s: Settings) -> dict[str, Any]:
    """All that PSA's trained network depends on, the readings apart."""
    options = {**plain(s.refine.psa), "weights": weights_identity(s, s.refine.psa.weights)}
    identity = {"psa": options, "trainer": trainer_identity(s), "seed": s.seed}
    if s.refine.psa.network == "backbone":
        identity["backbone"] = backbone_identity(s)
    return identity


def segmentation_identity(s: Settings) -> dict[str, Any]:
    """All that the trained segmentation network depends on, the pseudo masks apart."""
    options = plain(s.segmentation)
    network = options["network"]
    network["weights"] = weights_identity(s, network["weights"])
    keys = (
        "features",
        "msc",
        "msc_scales",
        "loss",
        "enlarge_logits",
        "optimizer",
        "train",
        "long_side",
    )
    identity = {key: options[key] for key in keys}
    if network["name"] == ON_BACKBONE:
        identity["backbone"] = backbone_identity(s)
    return {
        **identity,
        "network": network,
        "split": split_of(s),
        "trainer": trainer_identity(s),
        "seed": s.seed,
    }


def split_of(s: Settings) -> str:
    """The split whose pseudo masks the segmentation network is trained on."""
    return s.segmentation.split or s.data.infer_split
