"""From what stands on the command line to settings, and where the configuration lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.build import by_number
from wsss.errors import WsssError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from wsss.build.settings import Settings


def conf_folder() -> Path:
    """The folder of the configuration: in the package (in a checkout by a link), or beside it."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside.resolve() if inside.is_dir() else package.parent / "conf"


CONF = conf_folder()


def compose_settings(overrides: Sequence[str]) -> Settings:
    """Typed settings as on the command line, without a run and its folder.

    Raises:
        WsssError: an unknown key or choice, or a wrong value.
    """
    from wsss.build.settings import resolve_settings

    return resolve_settings(_compose(overrides)[0])


def composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Plain content as on the command line, and the choice of each group.

    Raises:
        WsssError: an unknown key or choice.
    """
    from omegaconf import OmegaConf

    cfg, choices = _compose(overrides)
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}, choices


def _compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str | None]]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    by_number.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = {str(k): v for k, v in cfg.hydra.runtime.choices.items() if "hydra" not in str(k)}
        with open_dict(cfg):
            del cfg["hydra"]
            # What the program sets when it runs.
            cfg.run_name = choices.get("experiment") or f"{choices['method']}_{choices['data']}"
            cfg.paths.run = str(Path(str(cfg.paths.outputs)) / cfg.run_name)
        OmegaConf.resolve(cfg)
        return cfg, choices
    except (HydraException, OmegaConfBaseException) as error:
        raise WsssError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error
