"""All settings at once: every key refuses what it can't be, in one line with its name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from wsss.build.components import TARGET, component
from wsss.build.settings import Settings, plain, resolve_settings
from wsss.cli import CONF, choices_of, settings_path
from wsss.data.scenes import Scenes
from wsss.errors import WsssError
from wsss.methods.sipe.branch import SIPE

# Overrides, and the groups that the others do not have; the first has all that is common.
COMMON = tuple(path.split(".")[0] for path in Settings.__dataclass_fields__)
BASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cam": ((), COMMON),
    "sipe": (("method=sipe",), ("method",)),
    "cpal": (("method=cpal", "logger=wandb"), ("method", "logger")),
    "coco": (("data=coco", "data.root=x", "backbone=timm"), ("data", "backbone")),
    "resnet38": (("segmentation=resnet38_coco", "optimizer=as_written"), ("segmentation",)),
    **{host: ((f"host={host}",), ("host",)) for host in choices_of("host") if host != "cam"},
}
composed: dict[str, DictConfig] = {}


def base(name: str) -> DictConfig:
    """A composed configuration, as the command line hands it on."""
    if name not in composed:
        OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
        OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*BASES[name][0], "paths.run=out"])
        OmegaConf.set_struct(cfg, False)
        composed[name] = cfg
    return copy.deepcopy(composed[name])


def resolved(name: str, *overrides: str) -> Settings:
    """Settings of a base with overrides, which are set without composing all again."""
    cfg = base(name)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return resolve_settings(cfg)


def refused(cfg: DictConfig) -> str:
    with pytest.raises(WsssError) as caught:
        resolve_settings(cfg)
    line = str(caught.value)
    assert "\n" not in line
    return line


def keys(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested mappings, of the mappings themselves, too."""
    if isinstance(content, dict):
        for name, value in content.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key, value
            yield from keys(value, key)


def nonsense(value: Any) -> bool:
    return "nonsense" in str(value) and not isinstance(value, dict)


def known(name: str) -> dict[str, Any]:
    content = OmegaConf.to_container(base(name), resolve=True)
    wanted = set(BASES[name][1]) - {"published"}  # which may hold anything
    return {k: v for k, v in keys(content) if k.split(".")[0] in wanted}


@pytest.mark.parametrize("name", BASES)
def test_every_key_refuses_a_value_of_a_wrong_type(name: str) -> None:
    """A list of mappings is nowhere right: each key must say so itself, before anything is done."""
    for key, value in known(name).items():
        if key.rpartition(".")[2] in (TARGET, "name") or isinstance(value, dict):
            continue  # names of what is looked up are other tests' matter
        cfg = base(name)
        OmegaConf.update(cfg, key, [{"nonsense": 1}], merge=False)
        line = refused(cfg)
        # The key itself, or one that takes its value from it.
        wrong = [k for k, v in keys(OmegaConf.to_container(cfg, resolve=True)) if nonsense(v)]
        told = [*(f"{k}=" for k in wrong), f"{key}.0", f"{key.rpartition('.')[0]}="]
        assert key in wrong and line.startswith(tuple(told)), f"{key}: {line}"


@pytest.mark.parametrize("name", BASES)
def test_unknown_keys_are_refused_at_every_depth(name: str) -> None:
    depths = set()
    # Any logger, callback, count or file of a split may be added.
    open_ended = ("logger", "callbacks", "data.expected_counts")
    open_ended += ("data.image_set.annotations", "data.image_set.images")
    for key, value in [*([("", {})] if name == "cam" else []), *known(name).items()]:
        if not isinstance(value, dict) or key in open_ended:
            continue
        cfg = base(name)
        wrong = f"{key}.nonsense" if key else "nonsense"
        OmegaConf.update(cfg, wrong, 1, force_add=True)
        line = refused(cfg)
        assert line.startswith((f"{wrong}: ", f"{wrong}=")), line  # =1: where any name may stand
        depths.add(wrong.count("."))
    assert depths >= ({0, 1, 2, 3} if name == "cam" else {1})


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("cam", "seed=abc", "seed=abc: must be a valid integer"),
        ("cam", "seed=-1", "seed=-1: must be greater than or equal to 0"),
        ("cam", "optimizer.lr=abc", "optimizer.lr=abc: must be a valid number"),
        ("cam", "optimizer.lr=0", "optimizer.lr=0: must be greater than 0"),
        ("cam", "optimizer.lr=nan", "optimizer.lr=nan: must be a finite number"),
        ("cam", "optimizer.name=lion", "optimizer.name=lion: must be 'sgd', 'adam' or 'adamw'"),
        ("cam", "optimizer.momentum=1", "optimizer.momentum=1: must be less than 1"),
        ("cam", "optimizer.rate=3", "optimizer.rate: unknown key; there are name, lr"),
        ("cam", "data.scales=1.0", "data.scales=1.0: must be a valid tuple"),
        ("cam", "data.scales=[]", "data.scales=[]: give at least one"),
        ("cam", "data.scales=[1.0,0]", "data.scales.1=0: must be greater than 0"),
        ("cam", "data.long_side=[48,24]", "data.long_side=[48, 24]: must be [smallest, largest]"),
        ("cam", "data.long_side=[48]", "data.long_side.1: is not given"),
        ("cam", "data.crop_size=0", "data.crop_size=0: must be greater"),
        ("cam", "data.batch_size=1.5", "data.batch_size=1.5: must be a valid integer"),
        ("cam", "data.num_workers=-2", "data.num_workers=-2: must be greater than or equal to -1"),
        ("cam", "data.infer_long_side=0", "data.infer_long_side=0: must be greater"),
        ("cam", "data.train_split=null", "data.train_split=null: must be a valid string"),
        ("cam", "data.image_set=null", "data.image_set=null: must be a choice"),
        ("cam", "data.image_set.n_train=x", "data.image_set.n_train=x: must be a valid integer"),
        ("cam", "data.image_set.color=red", "data.image_set.color: unknown key; there are root"),
        ("cam", "training.max_epochs=three", "training.max_epochs=three: must be a valid integer"),
        ("cam", "training.max_epochs=null", "training.max_epochs=null: must be a valid integer"),
        ("cam", "training.gradient_clip_val=0", "training.gradient_clip_val=0: must be greater"),
        ("cam", "trainer.precision=17", "trainer.precision=17: must be 'auto', '32-true', "),
        ("cam", "trainer.accelerator=abacus", "trainer.accelerator=abacus: must be 'auto', 'cpu'"),
        ("cam", "trainer.memory_format=rows", "trainer.memory_format=rows: must be 'auto', "),
        ("cam", "backbone.depht=50", "backbone.depht: unknown key; is 'depth' meant?"),
        ("cam", "backbone.norm=odd", "backbone.norm=odd: must be 'fixed' or 'batch'"),
        ("cam", "backbone=null", "backbone=null: must be a choice of its group"),
        ("cam", "host.width=3", "host.width: unknown key; there are none"),
        ("cam", "host._target_=wsss.no.Such", "host._target_=wsss.no.Such: can't be imported"),
        ("cam", "host._target_=os.path.join", "host._target_=os.path.join: builds no Host"),
        ("cam", "backbone._target_=wsss.run.logs.csv_logger", "backbone._target_=wsss.run.logs."),
        (
            "cpal",
            "method._target_=wsss.hosts.cam.CAM",
            "method._target_=wsss.hosts.cam.CAM: builds",
        ),
        ("cam", "data.image_set._target_=collections.Counter", "data.image_set._target_=coll"),
        ("cam", "logger.csv._target_=wsss.errors.WsssError", "logger.csv._target_=wsss.errors"),
        ("cam", "method.tau=0.1", "method.tau: method=cam has no keys"),
        ("cam", "make_cam.dtype=int4", "make_cam.dtype=int4: must be 'uint8' or 'float16'"),
        ("cam", "eval_cam.background=2", "eval_cam.background=2: must be less than or equal to 1"),
        ("cam", "eval_cam.thresholds=[0,1]", "eval_cam.thresholds.2: is not given"),
        ("cam", "refine.masks=seeds", "refine.masks=seeds: must be 'irn_masks', "),
        ("cam", "refine.crf.iterations=0", "refine.crf.iterations=0: must be greater"),
        ("cam", "refine.irn.crop_size=40", "refine.irn.crop_size=40: must be a multiple of 16"),
        ("cam", "logger.csv.flush=1", "logger.csv.flush: unknown key; there are folder, "),
        ("cam", "callbacks.lr.every=1", "callbacks.lr.every: unknown key; there are "),
        ("cam", "segmentation.train.pad_label=7", "segmentation.train.pad_label=7: must be 0 or"),
        ("cam", "report.runs=a", "report.runs=a: must be a valid tuple"),
        ("cam", "pipeline=train", "pipeline=train: must be a valid tuple"),
        ("cam", "overwrite=perhaps", "overwrite=perhaps: must be a valid boolean"),
        ("sipe", "method.attenuatoin=1", "method.attenuatoin: unknown key; is 'attenuation' meant"),
        ("sipe", "method.test.structure=h", "method.test.structure=h: must be 'f' or 'g'"),
        ("cpal", "method.bank.sise=3", "method.bank.sise: unknown key; is 'size' meant?"),
        ("cpal", "method.bank.size=0", "method.bank.size=0: must be greater than or equal to 1"),
        ("cpal", "method.bank.clusters=x", "method.bank.clusters=x: must be a valid integer or"),
        ("cpal", "method.tau=2", "method.tau=2: must be less than 1"),
        ("cpal", "method.prototypes=best", "method.prototypes=best: must be 'context', 'mean' or"),
        ("cpal", "logger.wandb.offline=so", "logger.wandb.offline=so: must be a valid boolean"),
        ("coco", "backbone.output_stride=x", "backbone.output_stride=x: must be a valid integer"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_wish(name: str, override: str, told: str) -> None:
    with pytest.raises(WsssError) as caught:
        resolved(name, override)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_right_values_arrive_typed() -> None:
    s = resolved(
        "sipe",
        "seed=7",
        "data.scales=[1,0.5]",
        "training.gradient_clip_val=null",
        "eval_cam.background=0.3",
        "method.test.structure=f",
    )
    assert s.seed == 7 and s.data.scales == (1.0, 0.5) and s.training.gradient_clip_val is None
    assert s.refine.crf.background == 0.3  # the CRF's follows eval_cam's
    assert s.method.name == "sipe" and s.method.branch is not None
    assert s.method.branch.make is SIPE and s.method.branch.options["options"].test.structure == "f"
    assert s.data.image_set.make is Scenes
    assert str(s.folder("train")) == "out/train"
    assert resolved("cam").method.branch is None


@pytest.mark.parametrize("name", BASES)
def test_as_plain_content_settings_are_what_was_composed(name: str) -> None:
    """What identities and loggers are told: every key that was composed, with its value."""
    told = dict(keys(plain(resolve_settings(base(name)))))
    for key, value in known(name).items():
        # Names of groups' choices are no settings; a method's is.
        if isinstance(value, dict) or (key.endswith(".name") and key not in told):
            assert key != "method.name"
            continue
        found = told[key]
        assert found == value or list(found) == list(value) or float(found) == float(value), key
    for key in ("seed", "data.scales", "optimizer.lr", "refine.irn.optimizer.lr_edge", "stage"):
        assert key in told


def test_a_component_builds_what_it_names_with_what_it_is_given() -> None:
    part = component({TARGET: "collections.Counter"}, "key")
    assert part("aab")["a"] == 2
    pool = component(
        {TARGET: "wsss.run.logs.wandb_logger", "project": "p", "tags": ["a"]}, "logger.wandb"
    )
    assert pool.options == {"project": "p", "tags": ["a"]} and pool.takes("folder")
    assert not pool.takes("host")
