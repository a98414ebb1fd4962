from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss.build.by_number import by_images, epochs
from wsss.cli import (
    CONF,
    choices_of,
    overview,
    quote_paths,
    settings_of,
    settings_path,
)
from wsss.errors import WsssError


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("checkpoint=outputs/x/seed=0/train/last.ckpt", ["outputs/x/seed=0/train/last.ckpt"]),
        ("checkpoint=a/seed=0/l.ckpt,a/seed=1/l.ckpt", ["a/seed=0/l.ckpt", "a/seed=1/l.ckpt"]),
        ("checkpoint='a/seed=0/l.ckpt'", ["a/seed=0/l.ckpt"]),
        ("seed=0,1", [0, 1]),
        ("data.scales=[1.0,0.5]", [[1.0, 0.5]]),
    ],
)
def test_values_with_an_equals_sign_reach_hydra_whole(override: str, values: list[object]) -> None:
    parsed = OverridesParser.create().parse_override(quote_paths(override))
    if parsed.is_sweep_override():
        found = list(parsed.sweep_iterator())
        assert [getattr(f, "text", f) for f in found] == values
    else:
        assert parsed.value() == values[0]


def test_a_path_that_exists_is_one_value_whatever_it_holds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "x/data.scales=[1.0,0.5],seed=0/last.ckpt"
    Path(path).parent.mkdir(parents=True)
    Path(path).touch()
    parsed = OverridesParser.create().parse_override(quote_paths(f"checkpoint={path}"))
    assert not parsed.is_sweep_override() and parsed.value() == path


@pytest.mark.parametrize(
    "name",
    [
        *("Kühe", "牛", "My Photos (1)", "2007", "1e5", "true", "a,b", "x#y", "a&b", "Bob's"),
        *("a=b", "[x", "x]", "{y", "a: b", 'say "x"', "a'b\"c", "it's\\", "50%", "a;b", "!x", "$x"),
        *("~tilde", "(1)", "x y ", "plain/path-1.5_x", "back\\slash", "*.jpg", "a\\'b"),
    ],
)
@pytest.mark.parametrize("key", ["data.root", "+backbone.weights", "first.step1.host.weights"])
def test_any_name_of_a_folder_reaches_hydra_as_it_is_typed(key: str, name: str) -> None:
    parsed = OverridesParser.create().parse_override(quote_paths(f"{key}={name}", sweep=False))
    assert not parsed.is_sweep_override() and parsed.value() == name


def test_a_home_folder_is_found(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quote_paths("data.root=~/photos") == f"data.root={tmp_path}/photos"
    assert quote_paths("optimizer.lr=~/photos") == "optimizer.lr=~/photos"  # no path


def test_what_hydra_reads_by_itself_is_left_alone() -> None:
    for override in (
        *("backbone.weights=null", "data.root='a b'", "data.root=${paths.cache}/x", "seed=0,1"),
        *("data.image_set.classes=[cat,dog]", "checkpoint=choice(a,b)", "~data.root", "--cfg"),
        *("data.scales=[1.0,0.5]", "experiment=cam_voc", "data.image_set.classes=classes.txt"),
    ):
        assert quote_paths(override) == override


def test_commas_part_the_values_of_a_sweep_alone() -> None:
    values = "backbone.weights=ä b,null,c=d"
    parsed = OverridesParser.create().parse_override(quote_paths(values))
    assert [str(v) for v in parsed.sweep_string_iterator()] == ["'ä b'", "null", "'c=d'"]
    assert (
        OverridesParser.create().parse_override(quote_paths(values, False)).value() == values[17:]
    )


def test_a_long_name_of_any_alphabet_fits_a_folder() -> None:
    name = settings_path("data.name=" + "牛" * 140)
    assert len(name.encode()) <= 150 and name.startswith("data.name=牛牛") and "~" in name
    assert name != settings_path("data.name=" + "牛" * 141)


def test_the_columns_of_help_never_touch() -> None:
    for line in overview().splitlines():
        if line.startswith("  ") and "run.py" not in line:
            _, blanks, _ = re.fullmatch(r"  (\S+)( *)(.*)", line).groups()
            assert len(blanks) >= 2, line


@pytest.mark.parametrize("number", [0, 7, 8, 61, 199, 200, 591, 1999, 2000])
def test_settings_go_by_the_number_of_photographs(tmp_path: Path, number: int) -> None:
    for i in range(number):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.jpg").touch()
    (tmp_path / "images.txt").touch()
    data = OmegaConf.create({"root": str(tmp_path), "image_set": {"images": "images"}})
    cfg = OmegaConf.create({"data": data})
    few, some = number < 200, 200 <= number < 2000
    assert by_images(1, 2, 3, _root_=cfg) == (1 if few else 2 if some else 3)
    assert by_images("crf", "irn_masks", _root_=cfg) == ("crf" if few else "irn_masks")
    # As many steps as asked for, and not an epoch more than that takes.
    found = epochs(240, 8, _root_=cfg)
    each = max(number // 8, 1)
    assert found * each >= 240 > (found - 1) * each


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
    with open_dict(cfg):
        cfg.paths.run = str(tmp_path)
    return cfg


def test_a_run_inside_the_run_has_its_own_settings_and_folder(tmp_path: Path) -> None:
    cfg = composed(tmp_path, "experiment=amn_voc", "seed=3", "+first.step1.training.max_epochs=2")
    found = settings_of(cfg, ["step1/train", "train"])
    first, second = found["step1/train"], found["train"]
    assert first.folder("train") == tmp_path / "step1" / "train"
    assert second.folder("train") == tmp_path / "train"
    assert first.seed == second.seed == 3
    # A choice of a group stands in the place of the job's: no key of AMN's is left over.
    assert first.host.target.endswith(".CAM") and second.host.target.endswith(".AMN")
    assert (first.optimizer.name, first.optimizer.lr) == ("sgd", 0.1)
    assert (second.optimizer.name, second.optimizer.lr) == ("adam", 5e-6)
    # What is no choice is merged key by key.
    assert (first.training.max_epochs, first.training.gradient_clip_val) == (2, 1.0)
    assert (second.training.max_epochs, second.training.gradient_clip_val) == (5, None)
    assert first.backbone.options == {**second.backbone.options, "frozen_stages": 2}
    labels = second.host.options["options"].labels
    assert labels == str(tmp_path / "step1" / "irn_labels" / "labels")


def test_what_is_wrong_with_a_run_inside_the_run_is_one_line(tmp_path: Path) -> None:
    cfg = composed(tmp_path, "experiment=amn_voc", "+first.step1.optimizer.rate=1")
    with pytest.raises(WsssError, match=r"optimizer\.rate: unknown key"):
        settings_of(cfg, ["step1/train"])
    with pytest.raises(WsssError, match=r"first\.other is not given"):
        settings_of(cfg, ["other/train"])


@pytest.mark.parametrize("name", [n for n in choices_of("experiment") if "amn" in n])
def test_amns_recipes_make_label_maps_first_and_read_them(name: str, tmp_path: Path) -> None:
    cfg = composed(tmp_path, f"experiment={name}")
    stages = list(cfg.pipeline)
    found = settings_of(cfg, stages)
    first, second = found["step1/irn_labels"], found["train"]
    assert second.host.options["options"].labels == str(first.folder("irn_labels") / "labels")
    assert stages.index("step1/irn_labels") < stages.index("train")
    assert first.data.infer_split == second.data.train_split
    assert first.refine.kind is None
    assert (first.method.name == "cpal") == ("cpal" in name and not name.endswith("_inside"))
    assert (second.method.name == "cpal") == name.endswith("_inside")
    if not name.startswith("demo"):
        assert second.refine.kind == "amn_cam" and second.refine.walk.power_constant == 1.3
        assert second.refine.labels.foreground_threshold == 0.45
        assert second.refine.labels.background_threshold == 0.15
    if "coco" not in name and not name.startswith("demo"):
        assert first.refine.labels.foreground_threshold == 0.30
        assert first.refine.labels.background_threshold == 0.05
