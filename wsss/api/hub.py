"""Models on a hub, by huggingface_hub (the extra `hub`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from wsss.api.files import load, save
from wsss.api.models import Model, SeedModel
from wsss.errors import WsssError

FILE = "model.safetensors"


def push(
    model: Model,
    name: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a model of wsss",
) -> str:
    """Upload a model with a card that says what it is and how it is used.

    Args:
        model: of `wsss.load`.
        name: of the repository, `USER/NAME`; it is made where there is none.
        private: whether a new one is seen by its owner alone.
        token: access token; None: the one that `hf auth login` has stored.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        WsssError: huggingface_hub is missing, or the hub refuses.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / FILE)
        (Path(folder) / "README.md").write_text(card(model, name), encoding="utf-8")
        try:
            api = hub.HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        except Exception as error:  # the network, rights, names
            raise WsssError(f"push to {name}: {_first(error)}") from error
    return str(done)


def pull(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device | None = None,
    trust: bool = False,
) -> Model:
    """A model from a hub; it is downloaded once.

    Args:
        name: of the repository, `USER/NAME`.
        revision: a commit, tag or branch; None: the newest.
        token: access token; None: the one that `hf auth login` has stored.
        device: see `wsss.load`.
        trust: see `wsss.load`; without it a file from anywhere runs none of its maker's code.

    Raises:
        WsssError: huggingface_hub is missing, there is no such model, or it is damaged.
    """
    hub = _hub()
    try:
        path = hub.hf_hub_download(name, FILE, revision=revision, token=token)
    except Exception as error:  # the network, rights, names
        raise WsssError(f"pull of {name}: {_first(error)}") from error
    return load(path, device=device, trust=trust)


def card(model: Model, name: str) -> str:
    """The README.md of a model's repository."""
    assert model.blueprint is not None
    seeds = isinstance(model, SeedModel)
    kind = "class maps and seeds" if seeds else "label maps"
    labels = ', labels=["CLASS"]' if seeds else ""
    parts = ["method", "host", "backbone"] if seeds else ["segmentation"]
    built = [f"- {part}: {_word(model.blueprint[part])}" for part in parts]
    return "\n".join(
        [
            "---",
            "library_name: wsss",
            "pipeline_tag: image-segmentation",
            "---",
            f"# {name}",
            "",
            f"A network that answers a photograph with {kind}, learnt from image labels.",
            "",
            "```python",
            "import wsss",
            "",
            f'model = wsss.pull("{name}")',
            f'model.predict("photo.jpg"{labels}).save("out")',
            "```",
            "",
            *built,
            f"- classes: {', '.join(model.classes)}",
            "",
        ]
    )


def _word(part: Any) -> str:
    """What a part of a blueprint is called."""
    if "network" in part:
        return str(part["network"]["name"])
    return str(part.get("name") or part["_target_"].rpartition(".")[2])


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise WsssError(
            "push and pull need huggingface_hub, which is not installed: "
            "pip install -c constraints.txt -e '.[hub]'"
        ) from error
    return huggingface_hub


def _first(error: Exception) -> str:
    """The first line of what the hub says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
