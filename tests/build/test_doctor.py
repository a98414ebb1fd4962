"""The doctor: what is there, what is made to be absent, and that nothing is left behind."""

from __future__ import annotations

import builtins
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from wsss import cli
from wsss.build import doctor
from wsss.build.doctor import Finding
from wsss.stages import get_stage


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch) -> None:
    """An empty working folder, and no account or download of whoever runs the tests."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def settings(*overrides: str) -> list[Finding]:
    return list(doctor.check_settings(cli.compose_for_doctor(list(overrides))))


def one(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what.strip() == what]
    return found


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three photographs in VOC layout, one of them listed for validation."""
    root = tmp_path / "VOC"
    (root / "JPEGImages").mkdir(parents=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (8, 8)).save(root / "JPEGImages" / f"{name}.jpg")
    for split, names in {"trainaug": "ab", "train": "a", "val": "c"}.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.mark.parametrize("word", ["doctor", "stage=doctor"])
def test_both_words_examine_all_and_leave_nothing_behind(command_line, word: str) -> None:
    done = command_line(word, "backbone.weights=null")
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    lines = out.splitlines()
    assert all(line.split()[0] in ("ok", "note", "problem") for line in lines[:-1])
    assert {"python", "torch", "cpu", "memory", "CRF", "disk", "data=scenes", "W&B"} <= {
        line.split()[1] for line in lines
    }
    assert f"torch             {torch.__version__.partition('+')[0]}" in out
    assert lines[-1].startswith("doctor: the program runs")
    assert "\x1b" not in out and "\r" not in out
    assert list(Path.cwd().iterdir()) == []


def test_a_long_name_does_not_run_into_what_is_said_of_it() -> None:
    assert Finding("problem", f"data={'x' * 30}", "is there").line.endswith("x is there")


def test_the_stage_can_stand_in_a_pipeline(capsys) -> None:
    get_stage("doctor")(cli.compose_for_doctor(["backbone.weights=null"]))
    assert "doctor: the program runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "error", "code", "told"),
    [
        ("torch", ModuleNotFoundError("No module", name="torch"), 1, "problem torch"),
        ("torchvision", RuntimeError("operator nms\nis gone"), 1, "problem torchvision"),
        ("wandb", ModuleNotFoundError("No module", name="wandb"), 0, "note    wandb"),
    ],
)
def test_a_library_that_is_absent_or_broken(
    command_line, monkeypatch, module: str, error: Exception, code: int, told: str
) -> None:
    real = importlib.import_module

    def import_module(name: str, *rest: object) -> object:
        if name == module:
            raise error
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib, "import_module", import_module)
    done = command_line("doctor", "backbone.weights=null")
    assert done.returncode == code
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(told)]
    assert "pip install" in line
    assert done.stderr == (
        f"error: doctor: nothing runs before this is put right: {module}\n" * code
    )


def test_versions_are_compared_as_numbers_with_the_projects_requirements(monkeypatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.10.1+cu126")
    for least, state in (("2.9", "ok"), ("2.10.1", "ok"), ("2.11", "note"), ("10.0", "note")):
        needs = ["numpy>=1", f"torch>={least},<99", "wandb>=1; extra == 'x'"]
        monkeypatch.setattr(doctor.metadata, "requires", lambda name, needs=needs: needs)
        found = one(list(doctor.check_packages()), "torch")
        assert found.state == state, (least, found.line)
        assert state == "ok" or least in found.line


@pytest.mark.parametrize(
    ("version", "state", "fatal"),
    [((3, 10, 9), "problem", True), ((3, 12, 0), "ok", False), ((3, 14, 0), "note", False)],
)
def test_python(version: tuple[int, ...], state: str, fatal: bool) -> None:
    found = doctor.check_python(version)
    assert (found.state, found.fatal) == (state, fatal)


def test_cpu_and_memory(tmp_path: Path) -> None:
    new = doctor.check_cpu(frozenset({"avx2", "avx512f", "amx_tile", "amx_bf16"}), 1)
    assert new.text == "1 core, AVX-512, AMX, bfloat16 (bf16-mixed)"
    old = doctor.check_cpu(frozenset({"avx2"}), 4)
    assert old.text == "4 cores, AVX2, no bfloat16 (32-true)"
    info, limit = tmp_path / "meminfo", tmp_path / "max"
    info.write_text("MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  8388608 kB\n")
    limit.write_text("max\n")
    assert doctor.check_memory(info, limit).text == "8.0 of 16.0 GiB free"
    limit.write_text(f"{3 * 2**30}\n")  # a container's
    assert doctor.check_memory(info, limit).line.startswith("note    memory")
    assert doctor.check_memory(tmp_path / "none", limit).text == "unknown"


def test_gpus(monkeypatch) -> None:
    device = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    found = list(doctor.check_gpus())
    assert [finding.what for finding in found] == ["gpu 0", "gpu 1"]
    assert found[0].text == "Some GPU, 24 GiB, CUDA 12.6, no bfloat16 (32-true)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (none,) = doctor.check_gpus()
    assert none.state == "note"
    trainer = one(settings("trainer=gpu", "backbone.weights=null"), "trainer")
    assert trainer.fatal


def test_the_crf_absent_and_wrong(monkeypatch) -> None:
    assert doctor.check_crf().state == "ok"
    with monkeypatch.context() as patch:
        patch.setattr("wsss.refine.crf.crf_from_probabilities", lambda image, maps: maps[::-1])
        assert "wrong results" in doctor.check_crf().text
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "wsss.refine":  # whose lattice is compiled by numba
            raise ImportError("No module named 'numba'")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    found = doctor.check_crf()
    assert found.state == "problem" and not found.fatal
    assert "No module named 'numba'" in found.line and "pip install" in found.line


def test_data_are_counted_and_what_is_missing_is_named(voc: Path) -> None:
    common = ("data=voc", f"data.root={voc}", "backbone.weights=null")
    found = settings(*common)
    counts = {split: one(found, split).text for split in ("trainaug", "train", "val")}
    assert counts == {"trainaug": "2 images", "train": "1 image", "val": "1 image"}
    (voc / "JPEGImages" / "b.jpg").unlink()
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    found = settings(*common)
    assert "1 of 2 images are missing" in one(found, "trainaug").text
    assert one(found, "trainaug").state == "problem"
    assert one(found, "val").state == "note"
    assert not any(finding.fatal for finding in found)


@pytest.mark.parametrize("data", ["voc", "coco", "folder"])
def test_a_root_that_is_absent_or_not_given_stops_the_program(data: str, tmp_path: Path) -> None:
    for root in ("null", str(tmp_path / "nowhere")):
        found = settings(f"data={data}", f"data.root={root}", "backbone.weights=null")
        root_finding = one(found, f"data={data}")
        assert root_finding.fatal and "data.root" in root_finding.line


def test_scenes_made_before_are_counted_and_not_made_again(tmp_path: Path, tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    found = settings(f"data.root={tiny}", "backbone.weights=null")  # another number of images
    assert one(found, "train").text == "3 images" and one(found, "val").text == "2 images"
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    from wsss.data.scenes import generate

    root = tmp_path / "scenes"
    generate(root, n_train=3, n_val=2, size=64)
    return root


def test_weights_of_backbone_and_segmentation_network(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2)}, file)
    key = "segmentation.network.weights"
    found = settings(f"backbone.weights={file}", f"{key}={file}")
    assert one(found, "backbone.weights").line.endswith("weights.pth, 2 tensors")
    assert one(found, "seg. weights").line.endswith("weights.pth, 2 tensors")
    file.write_bytes(b"half a download")
    found = settings(f"backbone.weights={file}", f"{key}={tmp_path / 'none'}")
    assert one(found, "backbone.weights").fatal
    bad = one(found, "seg. weights")
    assert bad.state == "problem" and not bad.fatal and "no such file" in bad.text
    assert one(settings(), "backbone.weights").state == "note"  # a download
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "resnet18-f37072fd.pth").touch()  # the name that torchvision gives it
    assert str(hub) in one(settings(), "backbone.weights").text


def test_weights_of_the_host(tmp_path: Path) -> None:
    words = "host.background=[sky]"
    assert not [f for f in settings() if f.what == "host.weights"], "plain CAM has none of its own"
    assert "at random" in one(settings("host=clip_es_tiny", words), "host.weights").text
    missing = one(settings("host=clip_es", f"host.weights={tmp_path}/none.pt"), "host")
    assert missing.fatal and "no such file" in missing.text


def test_wandb(tmp_path: Path) -> None:
    online, offline = {"offline": False}, {"offline": True}
    environment = {"NETRC": str(tmp_path / "netrc")}

    def check(logger: dict[str, bool] | None, **more: str) -> Finding:
        return doctor.check_wandb(logger, {**environment, **more})

    assert check(online).fatal and "wandb login" in check(online).line
    assert check(None).state == "ok" and "not used" in check(None).text
    for finding in (check(offline), check(online, WANDB_MODE="offline")):
        assert finding.state == "ok" and finding.text.startswith("offline")
    assert check(online, WANDB_API_KEY="secret").text == "logged in at api.wandb.ai"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert check(online).text == "logged in at api.wandb.ai"
    assert check(online, WANDB_BASE_URL="https://wandb.example.org").fatal


def test_the_output_folder(tmp_path: Path, monkeypatch) -> None:
    deep = tmp_path / "a" / "b"
    where, room = doctor.check_outputs(deep)
    assert where.text.endswith("a/b (new)") and room.what == "disk" and not deep.exists()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert [finding.state for finding in doctor.check_outputs(deep)] == ["ok", "note"]
    (tmp_path / "file").touch()
    (wrong,) = doctor.check_outputs(tmp_path / "file" / "outputs")
    assert wrong.fatal and "paths.outputs=" in wrong.line


def test_an_unknown_choice_is_one_line(command_line) -> None:
    done = command_line("doctor", "data=nothing")
    out, err = done.stdout, done.stderr
    assert done.returncode == 1 and "CRF" in out
    assert err.startswith("error: data=nothing: no such choice") and err.count("\n") == 1
