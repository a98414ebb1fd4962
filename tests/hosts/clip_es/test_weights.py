"""Files of CLIP's weights, of every form in which they are published; each made by the test."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.hosts.clip_es.host import CLIPES, CLIPESSettings
from wsss.hosts.clip_es.network import TowerSettings, build_clip, fill_clip
from wsss.hosts.clip_es.weights import read_weights

SIZES = TowerSettings(
    image_size=32, patch_size=8, width=64, layers=2, text_width=64, text_layers=2, embedding=16
)
FACTS = ("input_resolution", "context_length", "vocab_size")


class Tree(nn.Module):
    """A tree of modules with the tensors of a state dict at their names, and no other content."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(name, value)
        for name, part in inner.items():
            self.add_module(name, Tree(part))

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def tiny_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {k: v.clone() for k, v in build_clip(SIZES, True, vocab_size=40).state_dict().items()}


def as_archive(state: dict[str, Tensor], path: Path) -> None:
    """OpenAI's form: TorchScript, half precision, with three numbers beside the weights."""
    halves = {name: value.half() for name, value in state.items()}
    facts = {name: torch.tensor(7) for name in FACTS}
    torch.jit.save(torch.jit.script(Tree({**halves, **facts})), str(path))


def as_plain(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def as_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)


def as_own_text_tower(state: dict[str, Tensor], path: Path) -> None:
    """open_clip's other form: the text tower as a module of its own."""
    apart = ("visual.", "logit_scale")
    torch.save({k if k.startswith(apart) else f"text.{k}": v for k, v in state.items()}, path)


def as_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, path)


@pytest.mark.parametrize(
    ("write", "ending"),
    [
        (as_archive, ".pt"),
        (as_plain, ".pt"),
        (as_checkpoint, ".pth"),
        (as_own_text_tower, ".bin"),
        (as_safetensors, ".safetensors"),
    ],
)
def test_every_published_form_gives_the_same_network(
    write: Any, ending: str, tmp_path: Path
) -> None:
    state, path = tiny_state(), tmp_path / f"clip{ending}"
    write(state, path)
    found = read_weights(path)
    assert set(state) <= set(found)
    for name, value in state.items():
        assert found[name].dtype == torch.float32
        wanted = value.half().float() if write is as_archive else value
        assert torch.equal(found[name], wanted), name
    network = fill_clip(found, True, str(path))
    filled = network.state_dict()
    assert all(torch.equal(filled[name], found[name]) for name in state)
    assert not any(name in filled for name in FACTS)
    texts = torch.tensor([[38, 3, 9, 39, *[0] * 73]])
    assert network.encode_text(texts).shape == (1, 16)


def test_archive_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tree = Tree({"a.whole": base, "a.b.part": base[1:, ::2], "turned": base.T})
    torch.jit.save(torch.jit.script(tree), str(tmp_path / "x.pt"))
    found = read_weights(tmp_path / "x.pt")
    assert torch.equal(found["a.whole"], base)
    assert torch.equal(found["a.b.part"], base[1:, ::2])
    assert torch.equal(found["turned"], base.T)


class Harm:
    """Runs a command when it is unpickled without limits."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_that_a_file_carries_is_run(archive: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "clip.pt"
    if archive:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Tree({"a": torch.zeros(2)})), buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                bad = name.endswith("/data.pkl")
                new.writestr(name, pickle.dumps(Harm(mark)) if bad else old.read(name))
    else:
        torch.save({"a": Harm(mark)}, path)
    with pytest.raises(WsssError, match=r"clip\.pt: can't be read as weights of CLIP"):
        read_weights(path)
    assert not mark.exists()


def test_what_is_there_is_said_before_anything_is_built(tmp_path: Path) -> None:
    words = ("sky",)
    as_archive(tiny_state(), tmp_path / "clip.pt")
    given = CLIPESSettings(weights=str(tmp_path / "clip.pt"), background=words)
    said = CLIPES.foresee(given)
    assert said == f"{tmp_path}/clip.pt, {len(tiny_state()) + len(FACTS)} tensors"
    assert "at random" in CLIPES.foresee(CLIPESSettings(weights=None, background=words))
    assert "fetched" in CLIPES.foresee(CLIPESSettings(background=words))
    with pytest.raises(WsssError, match=r"host\.weights=.*none\.pt: no such file"):
        CLIPES.foresee(CLIPESSettings(weights=str(tmp_path / "none.pt"), background=words))


def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="no such file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(WsssError, match="can't be read"):
        read_weights(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WsssError, match="no weights by name"):
        read_weights(tmp_path / "list.pt")
    state = tiny_state()
    with pytest.raises(WsssError, match=r"x\.pt: .*visual\.proj.* is missing"):
        fill_clip({k: v for k, v in state.items() if k != "visual.proj"}, True, "x.pt")
    with pytest.raises(WsssError, match=r"x\.pt: visual\.ln_post\.bias is missing or of another"):
        fill_clip({**state, "visual.ln_post.bias": torch.zeros(3)}, True, "x.pt")
