"""Models go to a hub and come back, by a stand-in that keeps repositories in a folder."""

from __future__ import annotations

import builtins
import shutil
import sys
import types
from pathlib import Path

import pytest
import yaml

import wsss
from wsss.errors import WsssError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Path:
    """What is kept of huggingface_hub's functions; their parameters are those of the real ones."""
    root = tmp_path / "hub"

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            if "/" not in repo_id:
                raise ValueError("Repo id must be user/name\nand more lines")
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (root / repo_id / "private").write_text(str(private))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"commit to {repo_id}: {commit_message}"

    def hf_hub_download(
        repo_id: str, filename: str, *, revision: str | None, token: str | None
    ) -> str:
        if not (root / repo_id / filename).is_file():
            raise OSError(f"404: {repo_id}")
        return str(root / repo_id / filename)

    fake = types.ModuleType("huggingface_hub")
    fake.HfApi, fake.hf_hub_download = HfApi, hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return root


def test_the_stand_in_takes_what_the_library_takes() -> None:
    import inspect

    import huggingface_hub

    real = huggingface_hub.HfApi
    assert {"private", "exist_ok"} <= set(inspect.signature(real.create_repo).parameters)
    wanted = {"repo_id", "folder_path", "commit_message"}
    assert wanted <= set(inspect.signature(real.upload_folder).parameters)
    first = list(inspect.signature(huggingface_hub.hf_hub_download).parameters)
    assert first[:2] == ["repo_id", "filename"] and {"revision", "token"} <= set(first)


def test_a_model_comes_back_from_the_hub_as_it_went(hub: Path, written, files) -> None:
    _, checkpoint = written("method=sipe", "method.side_channels=[8,8,8,8]")
    model = wsss.load(checkpoint)
    assert (
        wsss.push(model, "me/seeds", private=True) == "commit to me/seeds: Upload a model of wsss"
    )
    assert (hub / "me/seeds/private").read_text() == "True"
    again = wsss.pull("me/seeds")
    for one, other in zip(
        *(m.predict(files[:2], [["cat"]] * 2) for m in (model, again)), strict=True
    ):
        assert (one.maps.maps["is_cam"] == other.maps.maps["is_cam"]).all()
    text = (hub / "me/seeds/README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "wsss"
    assert 'wsss.pull("me/seeds")' in body and "- method: sipe" in body and "cat" in body


def test_what_the_hub_refuses_is_one_line(hub: Path, written) -> None:
    model = wsss.load(written()[1])
    with pytest.raises(WsssError, match=r"^push to seeds: Repo id must be user/name$"):
        wsss.push(model, "seeds")
    with pytest.raises(WsssError, match="^pull of me/none: 404: me/none$"):
        wsss.pull("me/none")


def test_without_the_extra_the_way_out_is_told(written, monkeypatch) -> None:
    model = wsss.load(written()[1])
    real = builtins.__import__

    def without(name: str, *more: object) -> object:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WsssError, match=r"need huggingface_hub.*\[hub\]"):
        wsss.push(model, "me/x")
