"""A finished stage stays finished while all that it reads stays the same, and no longer.

The stages are the real ones; what takes long in them, training and map making, is replaced by
something that writes a file and counts.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.build.job import Job
from wsss.build.objects import build_network
from wsss.build.segmenter import find_trained
from wsss.build.settings import Settings
from wsss.build.trainer import Fitted
from wsss.cli import compose_for_doctor
from wsss.data.datamodule import WholeSet
from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.run.fingerprint import Fingerprints
from wsss.stages import eval_cam, get_stage, make_cam, seg_train, train

NAMES = ("a", "b", "c")
LABELS = {"a": "cat", "b": "dog", "c": "cat;dog"}


def make_data(folder: Path) -> Path:
    """A data set of three photographs with masks."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        write_mask(folder / "masks" / f"{name}.png", rng.integers(0, 3, (12, 16)).astype(np.uint8))
    (folder / "classes.txt").write_text("cat\ndog\n")
    write_labels(folder, LABELS)
    return folder


def write_labels(folder: Path, labels: dict[str, str]) -> None:
    rows = "".join(f"{name},{there}\n" for name, there in labels.items())
    (folder / "labels.csv").write_text("name,classes\n" + rows)


def replace_work(patch: pytest.MonkeyPatch) -> list[str]:
    """Replace what takes long; the stages that did work come into the list, in order."""
    work: list[str] = []

    def fit(job: Job, *args: Any, **more: Any) -> Fitted:
        work.append(job.stage)
        torch.save({"state_dict": {}, "of": job.hash}, job.path / "last.ckpt")
        return Fitted(1, 0.5, torch.device("cpu"), job.path / "last.ckpt", [])

    def predict(job: Job, maker: Any, whole: WholeSet, *args: Any, **more: Any) -> None:
        work.append(job.stage)
        assert whole.labels is not None
        for name, label in zip(whole.names, whole.labels, strict=True):
            classes = np.flatnonzero(label) + 1
            maps = {"cam": np.full((len(classes), 3, 4), 0.5, dtype=np.float32)}
            write_class_maps(maker.folder / f"{name}.npz", ClassMaps(classes, (12, 16), maps))

    def grid(*limits: float) -> np.ndarray:
        work.append("eval_cam")
        return np.array([0.2, 0.4])

    for stage in (train, seg_train):
        patch.setattr(stage, "fit", fit)
    patch.setattr(make_cam, "predict", predict)
    patch.setattr(make_cam, "load_network", lambda s, path, classes: build_network(s, classes))
    patch.setattr(eval_cam, "threshold_grid", grid)
    return work


class Program:
    """Stages over a data set, in a folder."""

    def __init__(self, folder: Path, work: list[str]) -> None:
        self.folder, self.root, self.work = folder, folder / "data", work

    def settings(self, *overrides: str, under: str = "") -> Settings:
        """Settings of a run, the one of the given overrides' folder where its name has several."""
        s = compose_for_doctor(
            [
                *("data=folder", "data.name=three", f"data.root={self.root}", "data.crop_size=32"),
                *("data.long_side=[16,24]", "data.batch_size=1", "data.scales=[1.0]"),
                *("backbone=timm", "backbone.name=test_resnet", "backbone.weights=null"),
                *("trainer=cpu", "trainer.precision=32-true", "logger=none"),
                *("segmentation=demo", "segmentation.features=pretrained"),
                *("segmentation.workers=0", "segmentation.pictures=0", "segmentation.split=train"),
                *("segmentation.train.batch_size=1", "segmentation.train.crop_size=32"),
                *("eval_cam.workers=0", "eval_cam.pictures=0", "make_cam.pictures=0"),
                *(f"paths.outputs={self.folder / 'out'}", f"paths.cache={self.folder / 'cache'}"),
                *overrides,
            ]
        )
        return replace(s, paths=replace(s.paths, run=str(Path(s.paths.run) / under)))

    def __call__(self, stage: str, *overrides: str, under: str = "") -> str:
        """`made`, `kept`, or why the stage refused."""
        before = len(self.work)
        try:
            get_stage(stage)(self.settings(*overrides, under=under))
        except WsssError as error:
            assert len(self.work) == before, "refused after the work"
            return str(error)
        done = self.work[before:]
        assert done in ([], [stage])
        return "made" if done else "kept"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`run("train", "key=value", ...)`: `made`, `kept`, or why the stage refused."""
    make_data(tmp_path / "data")
    return Program(tmp_path, replace_work(monkeypatch))


CHAIN = ("train", "make_cam", "eval_cam")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a chain of stages is finished."""
    folder = tmp_path_factory.mktemp("finished")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        run = Program(folder, replace_work(patch))
        assert [run(stage) for stage in CHAIN] == ["made"] * 3
    return folder


@pytest.fixture
def chain(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """As `run`, with a chain of stages that are finished."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Program(tmp_path, replace_work(monkeypatch))


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes under the same name, with the size and times that a user sees unchanged."""
    old = path.stat()
    assert path.read_bytes() != content
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def flipped(path: Path) -> bytes:
    """The file with its last byte changed: as long as before, and no reader minds."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


def refused(text: str, what: str) -> bool:
    """Whether it is one line that names what changed and the way out."""
    return what in text and "overwrite=true" in text and "\n" not in text


def test_data_that_moved_or_were_only_touched_are_the_same(chain: Program, tmp_path: Path) -> None:
    for path in chain.root.rglob("*.*"):
        path.touch()
    assert [chain(stage) for stage in CHAIN] == ["kept"] * 3
    shutil.move(chain.root, tmp_path / "elsewhere")
    moved = f"data.root={tmp_path / 'elsewhere'}"
    assert [chain(stage, moved) for stage in CHAIN] == ["kept"] * 3


def test_an_image_of_other_bytes_is_noticed(chain: Program) -> None:
    photograph = chain.root / "images" / "b.png"
    rewrite(photograph, flipped(photograph))
    assert refused(chain("train"), "images of train changed")
    assert refused(chain("make_cam"), "images of train changed")
    assert chain("train", "overwrite=true") == "made"


def test_corrected_image_labels_are_noticed(chain: Program) -> None:
    write_labels(chain.root, {**LABELS, "a": "cat;dog"})
    assert refused(chain("train"), "images of train changed")
    assert refused(chain("make_cam"), "images of train changed")


def test_a_mask_matters_to_scores_alone(chain: Program) -> None:
    mask = chain.root / "masks" / "a.png"
    pixels = np.zeros((12, 16), dtype=np.uint8)
    write_mask(chain.root / "other.png", pixels)
    rewrite(mask, (chain.root / "other.png").read_bytes())
    assert [chain("train"), chain("make_cam")] == ["kept"] * 2
    assert refused(chain("eval_cam"), "masks of train_with_masks changed")


def test_swapped_class_names_are_noticed(chain: Program) -> None:
    (chain.root / "classes.txt").write_text("dog\ncat\n")
    assert refused(chain("train"), "images of train changed")
    for stage in ("make_cam", "eval_cam"):
        text = chain(stage)
        assert "the classes in another order" in text and "run_name=" in text and "\n" not in text


def test_backbone_weights_are_known_by_their_content(run: Program, tmp_path: Path) -> None:
    import timm

    def save(seed: int, folder: str) -> Path:
        torch.manual_seed(seed)
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "net.pth"
        torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
        return path

    path = save(0, "w")
    assert run("train", f"backbone.weights={path}") == "made"
    assert run("train", f"backbone.weights={path}") == "kept"
    moved = shutil.copy(path, save(1, "elsewhere"))
    assert run("train", f"backbone.weights={moved}") == "kept"
    save(1, "w")
    text = run("train", f"backbone.weights={path}")
    assert refused(text, "backbone.weights was net.pth ")


@pytest.mark.parametrize("own", [True, False])
def test_a_replaced_checkpoint_is_noticed(chain: Program, tmp_path: Path, own: bool) -> None:
    (trained,) = (tmp_path / "out").rglob("last.ckpt")
    path = trained if own else shutil.copy(trained, tmp_path / "mine.ckpt")
    given = [] if own else [f"checkpoint={path}"]
    assert chain("make_cam", *given) == "kept", "the same weights, wherever they lie"
    rewrite(Path(path), flipped(Path(path)))
    assert refused(chain("make_cam", *given), "train changed")


def test_a_replaced_pseudo_mask_is_noticed(run: Program, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for name in NAMES:
        write_mask(masks / f"{name}.png", np.eye(12, 16, dtype=np.uint8))
    given = f"segmentation.masks={masks}"
    assert [run("seg_train", given) for _ in range(2)] == ["made", "kept"]
    write_mask(tmp_path / "other.png", 2 * np.eye(12, 16, dtype=np.uint8))
    rewrite(masks / "b.png", (tmp_path / "other.png").read_bytes())
    assert refused(run("seg_train", given), "pseudo masks changed")
    assert run("seg_train", given, "overwrite=true") == "made"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a chain of stages is finished below a run's name, in the folder `default`."""
    folder = tmp_path_factory.mktemp("several")
    make_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        run = Program(folder, replace_work(patch))
        assert [run(stage, under="default") for stage in CHAIN] == ["made"] * 3
    return folder


@pytest.fixture
def swept(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """As `run`, with a chain of stages that are finished in the folder `default`."""
    shutil.copytree(several, tmp_path, dirs_exist_ok=True)
    return Program(tmp_path, replace_work(monkeypatch))


@pytest.mark.parametrize(
    ("override", "acts_from"),
    [
        ("eval_cam.background=0.5", "eval_cam"),
        ("data.eval_split=train", "eval_cam"),
        ("data.scales=[0.5]", "make_cam"),
        ("make_cam.stride=2", "make_cam"),
        ("optimizer.lr=0.3", "train"),
        ("data.batch_size=2", "train"),
        ("seed=1", "train"),
    ],
)
def test_what_a_key_does_not_act_on_is_taken_from_other_overrides(
    swept: Program, override: str, acts_from: str
) -> None:
    first = CHAIN.index(acts_from)
    done = [swept(stage, override, under=override) for stage in CHAIN]
    # Scores stand in every folder by themselves, whatever acts on them.
    assert done[:2] == (["kept"] * first + ["made"] * 2)[:2] and done[2] == "made"


def test_a_stage_finds_what_it_reads_without_its_being_run_again(
    swept: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept("eval_cam", "eval_cam.background=0.5", under="b") == "made"
    told = capsys.readouterr().out
    assert "make_cam: taken from " in told and "default/make_cam" in told
    assert swept("make_cam", "data.scales=[0.5]", under="s") == "made"
    # Keys are told apart one by one: the training does not depend on either.
    both = ("data.scales=[0.5]", "eval_cam.background=0.5")
    assert swept("eval_cam", *both, under="both") == "made"
    assert "s/make_cam" in capsys.readouterr().out


def test_what_was_made_of_other_data_is_not_taken(swept: Program) -> None:
    photograph = swept.root / "images" / "b.png"
    rewrite(photograph, flipped(photograph))
    text = swept("eval_cam", "eval_cam.background=0.5", under="b")
    assert "needs stage=make_cam" in text
    assert swept("train", "eval_cam.background=0.5", under="b") == "made"


def test_the_way_out_is_a_checkpoint_that_there_is(swept: Program) -> None:
    text = swept("make_cam", "optimizer.lr=0.3", under="lr")
    assert "stage=train first" in text and "\n" not in text
    given = text.rpartition("give ")[2]
    assert Path(given.removeprefix("checkpoint=")).is_file()
    assert (
        swept("make_cam", "optimizer.lr=0.3", given, under="lr") == "kept"
    )  # its maps are there, too


def test_taken_results_are_those_files_and_go_with_them(swept: Program, tmp_path: Path) -> None:
    home = tmp_path / "out" / "doctor"
    key = "eval_cam.background=0.5"
    assert swept("train", key, under="b") == "kept"
    own, other = (home / name / "train" / "last.ckpt" for name in ("b", "default"))
    assert own.samefile(other)
    assert swept("train", key, "overwrite=true", under="b") == "made"
    assert other.is_file() and not own.samefile(other)
    shutil.rmtree(home / "b")
    assert swept("make_cam", key, under="b") == "kept"
    shutil.rmtree(home / "default")
    assert "needs stage=train" in swept("make_cam", key, under="b")
    assert swept("train", key, under="b") == "made"


def test_a_network_serves_predictions_of_other_scales(run: Program, tmp_path: Path) -> None:
    for name in NAMES:
        write_mask(tmp_path / "masks" / f"{name}.png", np.eye(12, 16, dtype=np.uint8))
    given = f"segmentation.masks={tmp_path / 'masks'}"
    assert run("seg_train", given, under="m") == "made"
    at_once = run.settings(given, "segmentation.eval.scales=[0.5]", under="m,s")
    trained = find_trained(at_once, "seg_predict")
    assert trained.path.samefile(tmp_path / "out" / "doctor" / "m" / "seg_train" / "last.ckpt")
    longer = run.settings(given, "segmentation.train.max_epochs=9", under="m,e")
    with pytest.raises(WsssError, match=r"segmentation\.checkpoint=.*m/seg_train/last\.ckpt"):
        find_trained(longer, "seg_predict")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_fingerprints_are_those_of_contents(files: list[Path], tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    a, b = Fingerprints(index).of(files)
    assert a != b and Fingerprints(index).of([*files, tmp_path / "none"]) == [a, b, "-"]
    rewrite(files[0], b"b")  # of the same size and time
    assert Fingerprints(index).of(files) == [b, b]
    files[1].unlink()
    assert Fingerprints(index).of(files) == [b, "-"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"%s": [1, 2]}', '{"%s": 7}'])
def test_a_damaged_index_is_made_anew(files: list[Path], tmp_path: Path, damage: str) -> None:
    index = tmp_path / "index.json"
    right = Fingerprints(index).of(files)
    index.write_text(damage.replace("%s", str(files[0])))
    assert Fingerprints(index).of(files) == right


def test_a_known_file_is_not_read_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.json"
    right = Fingerprints(index).of(files)
    monkeypatch.setattr("wsss.run.fingerprint.content_hash", lambda path: pytest.fail("read"))
    assert Fingerprints(index).of(files) == right
