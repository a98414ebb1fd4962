"""What this machine and these settings can do: findings, each with its remedy.

Only the standard library is imported here at once: what is looked at may be missing or broken.
"""

from __future__ import annotations

import importlib
import io
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from wsss.errors import WsssError

if TYPE_CHECKING:
    from wsss.build.components import Component
    from wsss.build.settings import DataSettings, Settings
    from wsss.segmentation.settings import NetworkSettings

OLDEST_PYTHON, TOO_NEW_PYTHON = (3, 11), (3, 14)
# Modules without which no stage starts, and their packages.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "pytorch_lightning": "pytorch-lightning",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "torchmetrics": "torchmetrics",
    "numpy": "numpy",
    "scipy": "scipy",
    "timm": "timm",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
}
# Those of single features, and what they are for.
OPTIONAL = {
    "sklearn": ("scikit-learn", "stage=figures of method=cpal"),
    "pycocotools": ("pycocotools", "data=coco"),
    "jinja2": ("jinja2", "stage=report"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "wandb": ("wandb", "logger=wandb"),
}
INSTALL = "pip install -e ."
GIB = 1024**3
LITTLE_MEMORY = 4 * GIB
LITTLE_DISK = 5 * GIB


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        state: `ok`; `note`, good to know; `problem`, something wanted does not work.
        what: what was looked at.
        text: what was found.
        remedy: what to do about it.
        fatal: whether, with these settings, not even the first stage can start.
    """

    state: str
    what: str
    text: str
    remedy: str = ""
    fatal: bool = False

    @property
    def line(self) -> str:
        """The finding as it is printed, always in one line."""
        told = " ".join(f"{self.text}{'; ' if self.remedy else ''}{self.remedy}".split())
        return f"{self.state:<7} {self.what:<17} {told}"


def fatal(what: str, text: str, remedy: str = "") -> Finding:
    """A problem that stops everything."""
    return Finding("problem", what, text, remedy, fatal=True)


def examine(compose: Callable[[], Any]) -> list[Finding]:
    """Print all findings as they are made, and a line to end with.

    Args:
        compose: gives the settings; called when there are the libraries for it.

    Returns:
        The findings.

    Raises:
        WsssError: a problem stops the program.
    """
    found = _tell([check_python(), *check_packages()])
    if not any(finding.fatal for finding in found):
        found += _tell(check_machine())
        found += _tell(check_settings(compose()))
    stopped = [finding.what for finding in found if finding.fatal]
    if stopped:
        raise WsssError(f"doctor: nothing runs before this is put right: {', '.join(stopped)}")
    problems, notes = (sum(f.state == state for f in found) for state in ("problem", "note"))
    print(f"doctor: the program runs; problems: {problems}, notes: {notes}", flush=True)
    return found


def _tell(findings: Iterable[Finding]) -> list[Finding]:
    found = []
    for finding in findings:
        print(finding.line, flush=True)
        found.append(finding)
    return found


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The Python that runs."""
    text = ".".join(map(str, version))
    oldest, newest = OLDEST_PYTHON, TOO_NEW_PYTHON
    wanted = (
        f"make an environment with Python {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1] - 1}"
    )
    if version < oldest:
        return fatal("python", f"{text} is too old", wanted)
    if version >= newest:
        return Finding("note", "python", f"{text} has not been tried", wanted)
    return Finding("ok", "python", f"{text}, {platform.platform(terse=True)}")


def check_packages() -> Iterator[Finding]:
    """Libraries: there, importable, and not older than what the project asks for."""
    oldest = _oldest_versions()
    for module, package in NEEDED.items():
        yield _package(module, package, oldest)
    for module, (package, use) in OPTIONAL.items():
        yield _package(module, package, oldest, use)


def _package(
    module: str, package: str, oldest: Mapping[str, str], use: str | None = None
) -> Finding:
    def failed(text: str) -> Finding:
        if use is None:
            return fatal(package, text, INSTALL)
        return Finding("note", package, f"{text}, {use} will not work", INSTALL)

    try:
        importlib.import_module(module)
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding("note", package, "imported, but not installed as a package", INSTALL)
    except ModuleNotFoundError as error:
        absent = error.name == module
        return failed("not installed" if absent else f"can't be imported ({error})")
    except Exception as error:  # a library that is not there, two builds that don't match
        return failed(f"can't be imported ({type(error).__name__}: {error})")
    least = oldest.get(package)
    if least and _older(version, least):
        return Finding("note", package, f"{version} is older than {least}", f"{INSTALL} -U")
    return Finding("ok", package, version)


def _older(version: str, least: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) < Version(least)
    except InvalidVersion:
        return False


def _oldest_versions() -> dict[str, str]:
    """Lower bounds of the project's own requirements, by package."""
    try:
        lines = metadata.requires("wsss") or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        name, least, rest = line.partition(">=")
        if least:
            found[name.strip()] = rest.partition(";")[0].partition(",")[0].strip()
    return found


def check_machine() -> Iterator[Finding]:
    """Processor, memory, GPUs, and the dense CRF, which is compiled."""
    from wsss.run.compute import cpu_flags

    yield check_cpu(cpu_flags(), _cores())
    yield check_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"))
    yield from check_gpus()
    yield check_crf()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # those that this process may use
    return os.cpu_count() or 1


def check_cpu(flags: frozenset[str], cores: int) -> Finding:
    """Cores and what they are quick at.

    Args:
        flags: as Linux names them; empty where they can't be read.
        cores: that this process may use.
    """
    from wsss.run.compute import cpu_has_bfloat16

    text = f"{cores} core{'s' * (cores != 1)}"
    if not flags:
        return Finding("ok", "cpu", f"{text}, {platform.machine()}, features unknown")
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    units = [wide] if "x86" in platform.machine().lower() or wide != "no AVX2" else []
    if "amx_tile" in flags:
        units.append("AMX")
    half = cpu_has_bfloat16(flags)
    units.append("bfloat16 (bf16-mixed)" if half else "no bfloat16 (32-true)")
    return Finding("ok", "cpu", ", ".join([text, *units]))


def check_memory(meminfo: Path, limit: Path) -> Finding:
    """Main memory, or what a container may use of it.

    Args:
        meminfo: linux' `/proc/meminfo`.
        limit: the control group's `memory.max`.
    """
    try:
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding("ok", "memory", "unknown")
    if limit.is_file() and (bound := limit.read_text().strip()).isdigit():
        total = min(total, int(bound))
        free = min(free, total)
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < LITTLE_MEMORY:
        return Finding("note", "memory", text, "data.num_workers=0, a smaller data.batch_size")
    return Finding("ok", "memory", text)


def check_gpus() -> Iterator[Finding]:
    """GPUs that PyTorch can use."""
    import torch

    if torch.cuda.is_available():
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16 (32-true)"
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            memory = f"{gpu.total_memory / GIB:.0f} GiB"
            text = f"{gpu.name}, {memory}, CUDA {torch.version.cuda}, {half}"
            yield Finding("ok", f"gpu {index}", text)
    elif not Path("/proc/driver/nvidia/version").exists():
        yield Finding("note", "gpu", "none", "trainer=auto uses the CPU")
    elif torch.version.cuda is None:
        remedy = "install the CUDA build of torch (pytorch.org)"
        yield Finding("note", "gpu", "there is a driver, but this torch is for CPUs only", remedy)
    else:
        text = f"there is a driver, but torch (CUDA {torch.version.cuda}) finds no GPU"
        yield Finding("note", "gpu", text, "look at nvidia-smi and CUDA_VISIBLE_DEVICES")


def check_crf() -> Finding:
    """The dense CRF, run on four equal pixels: it must keep the clear winner."""
    use = "crf, irn_labels and seg_eval's CRF need it"
    again = "pip install --force-reinstall numba llvmlite"
    try:
        import numpy as np

        from wsss.refine.crf import crf_from_probabilities

        maps = np.stack([np.full((2, 2), 0.9), np.full((2, 2), 0.1)])
        with redirect_stdout(io.StringIO()):  # it may say that it is compiled
            result = crf_from_probabilities(np.zeros((2, 2, 3), dtype=np.uint8), maps)
        if result.argmax(axis=0).any() or not np.allclose(result.sum(axis=0), 1, atol=1e-4):
            return Finding("problem", "CRF", f"gives wrong results, {use}", again)
        return Finding("ok", "CRF", "one of 2 x 2 pixels was run")
    except Exception as error:
        text = f"fails ({type(error).__name__}: {error}), {use}"
        return Finding("problem", "CRF", text, again)


def check_settings(s: Settings) -> Iterator[Finding]:
    """What the settings need: folders, data, weights, accounts."""
    yield from check_outputs(Path(s.paths.outputs))
    if s.trainer.accelerator in ("gpu", "cuda"):
        import torch

        if not torch.cuda.is_available():
            yield fatal("trainer", "a GPU is asked for and there is none", "trainer=cpu or auto")
    yield from check_data(s.data)
    yield from check_host(s.host)
    yield check_backbone_weights(s.backbone.options)
    yield check_segmentation_weights(s.segmentation.network)
    if s.checkpoint and not Path(s.checkpoint).is_file():
        yield Finding("problem", "checkpoint", f"{s.checkpoint}: no such file", "correct it")
    wandb = s.logger.get("wandb")
    yield check_wandb(wandb.options if wandb else None, os.environ)


def check_outputs(outputs: Path) -> Iterator[Finding]:
    """Whether results can be written, and the room for them; writes a file that has no name."""
    outputs = outputs.expanduser().absolute()
    there = next(path for path in (outputs, *outputs.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        text = f"{there} can't be written to ({error.strerror})"
        yield fatal("paths.outputs", text, "paths.outputs=FOLDER")
        return
    yield Finding("ok", "paths.outputs", f"{outputs}{'' if there == outputs else ' (new)'}")
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB free"
    if free < LITTLE_DISK:
        yield Finding("note", "disk", text, "make room, or paths.outputs=FOLDER on another disk")
    else:
        yield Finding("ok", "disk", text)


def check_data(data: DataSettings) -> Iterator[Finding]:
    """The data set's root, and the images of the splits that the settings use."""
    from wsss.data.scenes import Scenes

    name = f"data={data.name}"
    try:
        image_set = data.image_set()
        root = Path(data.root or "").expanduser()
        if isinstance(image_set, Scenes):
            if image_set.list_path(data.train_split) is None:
                yield Finding("ok", name, f"{root} is generated when it is first used")
                return
        elif hasattr(image_set, "check_root"):
            image_set.check_root()
        elif not root.is_dir():
            yield fatal(name, f"the folder {root} does not exist", "correct data.root")
            return
    except Exception as error:
        yield fatal(name, _said(error))
        return
    yield Finding("ok", name, str(root))
    splits = [data.train_split, data.infer_split, data.eval_split, data.val_split]
    for split in dict.fromkeys(split for split in splits if split):
        yield _split(image_set, split)


def _split(image_set: Any, split: str) -> Finding:
    from wsss.data.base import missing_files, read_list
    from wsss.data.scenes import Scenes

    what = f"  {split}"
    try:
        if isinstance(image_set, Scenes):  # whose `names` would generate them
            listed = image_set.list_path(split)
            names = [] if listed is None else read_list(listed)
        else:
            names = image_set.names(split)
        missing = missing_files([image_set.image_path(name) for name in names])
    except WsssError as error:
        return Finding("note", what, str(error))  # stage=prepare may still make it
    if missing:
        text = f"{len(missing)} of {len(names)} images are missing, for instance {missing[0]}"
        return Finding("problem", what, text, "complete the data set or correct data.root")
    return Finding("ok", what, f"{len(names)} image{'s' * (len(names) != 1)}")


def check_host(host: Component) -> Iterator[Finding]:
    """What the host needs of its own: packages, weights."""
    try:
        said = host.make.foresee(host.options["options"])  # type: ignore[attr-defined]
    except WsssError as error:
        yield fatal("host", str(error))
    else:
        if said is not None:
            yield Finding("ok", "host.weights", said)


def check_backbone_weights(backbone: Mapping[str, Any]) -> Finding:
    """Initial weights of the backbone: a file that can be read, a download, or none."""
    from wsss.backbones.base import read_state_dict

    what, weights = "backbone.weights", backbone.get("weights")
    if weights is None:
        return Finding("ok", what, "null: starts from random weights")
    if weights != "imagenet":
        try:
            tensors = len(read_state_dict(weights))
        except WsssError as error:
            return fatal(what, str(error).removeprefix(f"{what}="))
        return Finding("ok", what, f"{weights}, {tensors} tensors")
    cached = downloaded(backbone)
    if cached:
        return Finding("ok", what, f"imagenet, downloaded before to {cached}")
    remedy = "without a network give backbone.weights=FILE"
    return Finding("note", what, "imagenet, is downloaded when it is first used", remedy)


def downloaded(backbone: Mapping[str, Any]) -> Path | None:
    """The file to which the backbone's ImageNet weights were downloaded, if they were."""
    import torch

    hub = Path(torch.hub.get_dir()) / "checkpoints"
    if "depth" in backbone:
        import torchvision

        network = f"resnet{backbone['depth']}"
        url = torchvision.models.get_model_weights(network)["IMAGENET1K_V1"].url
    else:
        import timm

        pretrained = timm.get_pretrained_cfg(backbone["name"])
        if pretrained is None:
            return None
        if pretrained.hf_hub_id:
            from huggingface_hub import try_to_load_from_cache

            for file in ("model.safetensors", "pytorch_model.bin"):
                path = try_to_load_from_cache(pretrained.hf_hub_id, file)
                if isinstance(path, str):
                    return Path(path)
        url = pretrained.url or ""
    path = hub / Path(urlparse(url).path).name
    return path if path.is_file() else None


def check_segmentation_weights(network: NetworkSettings) -> Finding:
    """Initial weights of the segmentation network, which is trained last."""
    from wsss.segmentation.base import read_weights

    what = "seg. weights"
    if network.weights is None:
        if network.name == "backbone":
            return Finding("ok", what, "those of the backbone")
        remedy = f"segmentation.network.weights=FILE for {network.name}"
        return Finding("note", what, "none: stage=seg_train starts from random weights", remedy)
    try:
        return Finding(
            "ok", what, f"{network.weights}, {len(read_weights(network.weights))} tensors"
        )
    except WsssError as error:
        return Finding("problem", what, str(error))


def check_wandb(logger: Mapping[str, Any] | None, environment: Mapping[str, str]) -> Finding:
    """Whether Weights & Biases would take a run; nothing is sent.

    Args:
        logger: the settings `logger.wandb`, or None where it is not used.
        environment: variables of the process.
    """
    mode = environment.get("WANDB_MODE", "online")
    if mode == "disabled":
        return Finding("note", "W&B", "WANDB_MODE=disabled: nothing is recorded", "unset it")
    if mode in ("offline", "dryrun") or (logger and logger["offline"]):
        return Finding("ok", "W&B", "offline; `wandb sync` uploads the runs later")
    address = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(address).hostname or ""
    if environment.get("WANDB_API_KEY") or _logged_in(address):
        return Finding("ok", "W&B", f"logged in at {host}")
    if logger:
        return fatal("W&B", f"not logged in at {host}", "wandb login, or logger.wandb.offline=true")
    return Finding("ok", "W&B", "not logged in, and not used (logger=wandb would)")


def _logged_in(address: str) -> bool:
    """Whether a login for an address is stored where W&B looks for it."""
    try:
        from requests.utils import get_netrc_auth  # what W&B itself stands on
    except ModuleNotFoundError:
        return False
    return get_netrc_auth(address) is not None


def _said(error: BaseException) -> str:
    """Our own words, where an error of Hydra's is wrapped around them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WsssError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"
