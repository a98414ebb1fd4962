"""Which file is taken, what it may name, and what is said of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import wsss
from wsss.backbones import ResNet
from wsss.data.scenes import CLASSES
from wsss.errors import WsssError
from wsss.files import write_json
from wsss.hosts.base import HostSettings
from wsss.hosts.cam import CAM
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.network import SeedNetwork

SMALL = ("segmentation=demo", "segmentation.features=pretrained")


def test_importing_the_package_imports_no_library() -> None:
    code = (
        "import sys, wsss; heavy = {'torch', 'numpy', 'hydra', 'PIL'} & set(sys.modules); "
        "assert not heavy, heavy; assert callable(wsss.load) and 'torch' in sys.modules; "
        "assert 'hydra' not in sys.modules; assert {'load', 'push'} <= set(dir(wsss))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        wsss.lode  # noqa: B018


def test_a_trained_run_is_found_by_any_of_its_folders(lend) -> None:
    s = lend("train")
    run = Path(s.paths.run)
    models = [wsss.load(p) for p in (run / "train" / "last.ckpt", run / "train", run, run.parent)]
    first = models[0]
    assert first.classes == tuple(CLASSES) and first.blueprint["host"]["_target_"].endswith("CAM")
    assert first.settings.scales == (1.0, 0.5)
    state = torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]
    for model in models:
        for name, values in model.weights().items():
            assert torch.equal(values, state[name]), name


def test_of_several_runs_one_is_to_be_named(written, settings, tmp_path) -> None:
    _, path = written()
    for seed in (0, 1):
        other = tmp_path / "both" / f"seed={seed}" / "train"
        other.mkdir(parents=True)
        (other / "last.ckpt").write_bytes(path.read_bytes())
    with pytest.raises(WsssError, match=r"holds 2 models \(seed=0/train, seed=1/train\)"):
        wsss.load(tmp_path / "both")


def test_a_file_that_does_not_say_what_it_is_takes_settings(
    written, settings, untrained_network, tmp_path
) -> None:
    s, path = written()
    content = torch.load(path, weights_only=True)
    del content["blueprint"]
    torch.save(content, path)
    with pytest.raises(WsssError, match="does not say what network it belongs to"):
        wsss.load(path)
    small = ("backbone=timm", "backbone.name=test_resnet", "backbone.weights=null")
    model = wsss.load(path, *small, "data.scales=[1.0]")
    assert model.classes == tuple(CLASSES) and model.settings.scales == (1.0,)
    assert wsss.load(model.save(tmp_path / "m.safetensors")).settings == model.settings
    with pytest.raises(WsssError, match="not a checkpoint of host=cam method=cam"):
        wsss.load(path, "backbone=resnet18")
    with pytest.raises(WsssError, match="none_such"):
        wsss.load(path, "experiment=none_such")
    with pytest.raises(WsssError, match="says itself what it is"):
        wsss.load(tmp_path / "m.safetensors", *small)

    s = settings(*SMALL, run="seg")
    untrained_network(s)
    path = s.folder("seg_train") / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["blueprint"]
    torch.save(content, path)
    segmenter = wsss.load(path, *small, *SMALL)
    assert isinstance(segmenter, wsss.SegmentationModel)


def altered(path: Path, **changes: object) -> Path:
    """A model file with other entries in its blueprint."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        blueprint = json.loads(file.metadata()["wsss"])
    other = path.with_name("altered.safetensors")
    save_file(load_file(path), other, metadata={"wsss": json.dumps({**blueprint, **changes})})
    return other


def test_a_file_runs_no_code_of_others_unless_it_is_trusted(written, tmp_path, monkeypatch) -> None:
    _, path = written()
    good = wsss.load(path).save(tmp_path / "m.safetensors")
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("trap.Host", "os.system", "subprocess.Popen"):
        bad = altered(good, host={"_target_": target})
        with pytest.raises(WsssError, match=f"host is {target}, which is no part of wsss; trust"):
            wsss.load(bad)
    assert "trap" not in sys.modules
    inner = {
        "_target_": "wsss.methods.several.Several",
        "branches": {"x": {"_target_": "os.system"}},
    }
    with pytest.raises(WsssError, match="method is os.system, which is no part of wsss"):
        wsss.load(altered(good, method=inner))
    for target in ("wsss.files.remove_parts", "wsss.backbones.ResNet"):
        with pytest.raises(WsssError, match="which is no Host"):
            wsss.load(altered(good, host={"_target_": target}))
    (tmp_path / "mine.py").write_text(
        "from wsss.hosts.cam import CAM\nclass Mine(CAM):\n    pass\n"
    )
    own = altered(good, host={"_target_": "mine.Mine"})
    assert type(wsss.load(own, trust=True).network.host).__name__ == "Mine"


def test_a_damaged_or_foreign_file_is_one_line(written, tmp_path) -> None:
    _, path = written()
    good = wsss.load(path).save(tmp_path / "m.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:500])
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "no.ckpt").write_bytes(b"no")
    tensors = load_file(good)
    tensors.popitem()
    wrong = {
        tmp_path / "cut.safetensors": "can't be read as a model file",
        tmp_path / "plain.safetensors": "does not say what network it belongs to",
        tmp_path / "no.ckpt": "can't be read as a checkpoint",
        altered(good, format=99): "has format 99, this version reads 1",
    }
    later = good.with_name("later.safetensors")
    altered(good, seed_of_later=1).rename(later)
    wrong[later] = "seed_of_later: unknown key.* made by another version: load its checkpoint"
    altered(good, format=99)
    for file, told in wrong.items():
        with pytest.raises(WsssError, match=told) as caught:
            wsss.load(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(WsssError, match=r"classes|unknown key|of another version"):
        wsss.load(altered(good, classes=["one"]))


def test_a_network_put_together_by_hand_predicts_but_is_not_saved(files, tmp_path) -> None:
    host = CAM(HostSettings(), CLASSES, ResNet(depth=18, frozen_stages=0, norm="batch"))
    network = SeedNetwork(host, None, OptimizerSettings(lr=0.1, head_lr=0.1))
    model = wsss.SeedModel(network)
    assert model.predict(files[0], ["cat"]).maps.classes.tolist() == [4]
    with pytest.raises(WsssError, match="put together by hand"):
        model.save(tmp_path / "m.safetensors")


def test_a_manifest_of_a_training_without_a_checkpoint_is_no_model(tmp_path) -> None:
    write_json(tmp_path / "train" / "manifest.json", {"stage": "train", "trained": False})
    with pytest.raises(WsssError, match="no finished model"):
        wsss.load(tmp_path)
