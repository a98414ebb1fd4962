"""All settings of the program, resolved once from what the command line composed.

Unknown keys, wrong types and values out of range end here, before data or weights are touched;
nothing below `wsss.build` sees a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from wsss.backbones.base import Backbone
from wsss.build.components import TARGET, Component, component
from wsss.data.base import ImageSet
from wsss.data.transforms import check_range
from wsss.errors import WsssError
from wsss.hosts.base import Host
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.base import Branch
from wsss.refine.crf import Complement, CrfSettings
from wsss.refine.irn import IRNSettings
from wsss.refine.labels import LabelSettings
from wsss.refine.psa import PSALabelSettings, PSAWalkSettings
from wsss.refine.psa_network import PSASettings
from wsss.refine.pseudo_mask import WalkSettings
from wsss.segmentation.settings import SegmentationSettings
from wsss.settings import Count, Positive, Share, Whole, Workers, resolve, settings


@settings
class PathSettings:
    """Where files lie.

    Attributes:
        outputs: folder of all results.
        cache: folder of what is derived once from raw data.
        run: folder of this run, set by the command line.
    """

    outputs: str = "outputs"
    cache: str = "outputs/cache"
    run: str


@settings
class DataSettings:
    """The data set and how images are looked at.

    Attributes:
        name: keeps runs and derived files of data sets apart.
        root: its folder; None where `image_set` says so itself.
        sbd_root: folder of SBD.
        image_set: the data set.
        expected_counts: images that a split must have, checked by stage=prepare; None: any.
        train_split: trained on, by image labels alone.
        infer_split: class maps are made of these.
        eval_split: and scored on these, which have masks.
        val_split: for the segmentation network.
        crop_size: side of the training crop, pixels.
        long_side: random long side of a training image, [smallest, largest], pixels.
        batch_size: images per optimizer step, over all processes together.
        num_workers: loader processes; -1 chooses.
        scales: test-time scales, each with its mirror image.
        infer_long_side: long side that counts as scale 1 at test time; None: the image's own.
    """

    name: str
    root: str | None = None
    sbd_root: str | None = None
    image_set: Component
    expected_counts: dict[str, Whole | None] | None = None
    train_split: str
    infer_split: str
    eval_split: str
    val_split: str | None = None
    crop_size: Count
    long_side: tuple[Count, Count]
    batch_size: Count
    num_workers: Workers = -1
    scales: tuple[Positive, ...]
    infer_long_side: Count | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise WsssError("data.name: is empty; give a word, it keeps runs and files apart")
        check_range("data.long_side", self.long_side)
        if not self.scales:
            raise WsssError("data.scales=[]: give at least one")


@settings
class TrainingSettings:
    """How long the host and method are trained.

    Attributes:
        max_epochs: length of stage=train.
        gradient_clip_val: norm; None: not clipped.
    """

    max_epochs: Count = 5
    gradient_clip_val: Positive | None = 1.0


Precision = Literal[
    "auto",
    "32-true",
    "bf16-mixed",
    "16-mixed",
    "bf16-true",
    "16-true",
    "64-true",
    32,
    16,
    64,
    "bf16",
]


@settings
class TrainerSettings:
    """Lightning's trainer: hardware, precision, how much is logged."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | list[int] | Literal["auto"] = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    precision: Precision = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    deterministic: bool | Literal["warn"] = False
    log_every_n_steps: Count = 10
    limit_train_batches: int | float | None = None


@settings
class MakeCamSettings:
    """stage=make_cam.

    Attributes:
        dtype: of stored maps.
        stride: their resolution; 1 = that of the photograph.
        pictures: rows of the contact sheet.
    """

    dtype: Literal["uint8", "float16"] = "uint8"
    stride: Count = 4
    pictures: Whole = 8


@settings
class EvalCamSettings:
    """stage=eval_cam.

    Attributes:
        background: constant background of maps without a background channel.
        thresholds: first, last, step of the threshold curve.
        workers: processes; -1: one per core.
        pictures: rows of the contact sheet.
    """

    background: Share = 0.15
    thresholds: tuple[Share, Share, Positive] = (0.01, 0.80, 0.01)
    workers: Workers = -1
    pictures: Whole = 8


@settings
class ReportSettings:
    """stage=report and stage=gallery.

    Attributes:
        runs: names of the runs to gather; None: this one.
        picture_side: longer side of the gallery's pictures, pixels.
    """

    runs: tuple[str, ...] | None = None
    picture_side: Count = 480


@settings
class FiguresSettings:
    """stage=figures: how many images, or which ones."""

    images: Count = 6
    names: tuple[str, ...] | None = None


@settings
class SeedCrf(CrfSettings):
    """stage=crf: seeds as probabilities, and the CRF.

    Attributes:
        background: background of maps without a channel for it: a constant, or `complement`.
        power: exponent of the maps before they are made probabilities.
        confidence: pixels whose best label has less than this become 255; None: all are kept.
    """

    background: Share | Complement = 0.15
    power: Positive = 1.0
    confidence: Share | None = None

    @property
    def constant(self) -> float:
        """The constant whose raw seeds are the same: v > 1 - v is v > 1/2."""
        return 0.5 if self.background == "complement" else self.background


@settings
class RefineSettings:
    """From class maps to pseudo masks.

    Attributes:
        kind: which class maps; None: the method's own.
        affinity: what pseudo masks are made by: irn or psa; names the stages of a pipeline.
        masks: the stage whose result is the pseudo mask.
        workers: processes for CRFs; -1: one per core.
        pictures: rows of the contact sheets.
        npy: stage=import_cam: folder of `.npy` files.
        npy_format: stage=export_cam: irn, amn, mctformer, clip_es or sipe.
        crf: stage=crf.
        labels: stage=irn_labels.
        irn: stage=irn_train.
        walk: stage=irn_masks.
        psa_labels: stage=psa_labels.
        psa: stage=psa_train.
        psa_walk: stage=psa_masks.
    """

    kind: str | None = None
    affinity: Literal["irn", "psa"] = "irn"
    masks: Literal["irn_masks", "psa_masks", "crf"] = "irn_masks"
    workers: Workers = -1
    pictures: Whole = 8
    npy: str | None = None
    npy_format: Literal["irn", "amn", "mctformer", "clip_es", "sipe"] = "irn"
    crf: SeedCrf = SeedCrf()
    labels: LabelSettings = LabelSettings()
    irn: IRNSettings = IRNSettings()
    walk: WalkSettings = WalkSettings()
    psa_labels: PSALabelSettings = PSALabelSettings()
    psa: PSASettings = PSASettings()
    psa_walk: PSAWalkSettings = PSAWalkSettings()


@dataclass(frozen=True)
class Method:
    """The choice `method`: its name, and the branch; None: the host alone."""

    name: str
    branch: Component | None


@settings
class Settings:
    """Everything that can be set; see `conf/config.yaml`."""

    stage: str
    pipeline: tuple[str, ...]
    seed: Whole = 0
    run_name: str
    overwrite: bool = False
    checkpoint: str | None = None
    input: str | None = None
    paths: PathSettings
    data: DataSettings
    backbone: Component
    host: Component
    method: Method
    optimizer: OptimizerSettings
    training: TrainingSettings
    trainer: TrainerSettings
    logger: dict[str, Component]
    callbacks: dict[str, Component]
    make_cam: MakeCamSettings
    eval_cam: EvalCamSettings
    report: ReportSettings
    figures: FiguresSettings
    refine: RefineSettings
    segmentation: SegmentationSettings
    published: dict[str, Any] | None = None

    def folder(self, stage: str) -> Path:
        """Folder of one stage of this run."""
        return Path(self.paths.run) / stage

    def other_folders(self, stage: str) -> list[Path]:
        """Folders of one stage with other overrides of this run's name, few overrides first."""
        home = Path(self.paths.outputs).absolute() / self.run_name
        run = Path(self.paths.run).absolute()
        if not home.is_dir() or home not in run.parents:
            return []
        own, *part = run.relative_to(home).parts
        runs = sorted(home.iterdir(), key=lambda one: (one.name.count("="), one.name))
        return [one.joinpath(*part, stage) for one in runs if one.name != own]


def resolve_settings(cfg: DictConfig) -> Settings:
    """The typed settings of a composed configuration.

    Raises:
        WsssError: the first thing that is wrong with it, as one line with its key.
    """
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    given: dict[str, Any] = {str(k): v for k, v in content.items() if k not in ("hydra", "first")}
    given["backbone"] = component(given.get("backbone"), "backbone", Backbone)
    given["host"] = component(given.get("host"), "host", Host)
    method = given.get("method") or {}
    branch = component(method, "method", Branch) if TARGET in method else None
    unknown = [key for key in method if key not in (TARGET, "name")]
    if branch is None and unknown:
        raise WsssError(f"method.{unknown[0]}: method={method.get('name')} has no keys")
    given["method"] = Method(str(method.get("name")), branch)
    data = dict(given.get("data") or {})
    data["image_set"] = component(data.get("image_set"), "data.image_set", ImageSet)
    given["data"] = data
    for key, kind in (("logger", Logger), ("callbacks", Callback)):
        given[key] = {
            name: component(entry, f"{key}.{name}", kind)
            for name, entry in (given.get(key) or {}).items()
            if entry
        }
    return resolve(Settings, given)


def plain(value: Any) -> Any:
    """Settings as plain dicts, lists and scalars, for JSON and hashes."""
    if isinstance(value, Method):  # by the keys that a user knows
        return {"name": value.name, **(plain(value.branch) if value.branch else {})}
    if isinstance(value, Component):
        options = value.options.get("options", value.options)
        return {TARGET: value.target, **plain(options)}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
