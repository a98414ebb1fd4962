"""Several methods on one host in one training, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss.data.datamodule import Sample, WholeSet
from wsss.errors import WsssError
from wsss.hosts.base import Seen
from wsss.methods.base import Branch, Network
from wsss.settings import settings


@settings
class SeveralSettings:
    """The branches.

    Attributes:
        branches: what makes each of them, called as `Branch`, by the name of its maps.
    """

    branches: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.branches:
            raise WsssError("method.branches={}: give at least one")
        for name in self.branches:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise WsssError(f"method.branches.{name}: can't be a branch's name, choose another")


class Several(Branch):
    """Branches that share a host and leave it alone, as each of them would alone.

    Their losses do not reach the host, and each begins with the weights and keeps the bank that
    it would have alone: a training gives the CAM and the maps of as many trainings as there are
    branches, and what they differ in is the branch alone. The class maps of each have its name.
    """

    Settings = SeveralSettings
    options: SeveralSettings

    def __init__(
        self, options: SeveralSettings, channels: Sequence[int], num_classes: int, seed: int = 0
    ) -> None:
        """Build the branches; arguments as in `Branch`.

        Raises:
            WsssError: a branch trains the host.
        """
        super().__init__(options, channels, num_classes, seed)
        self.branches = nn.ModuleDict()
        drawn = torch.get_rng_state()
        for name, make in options.branches.items():
            torch.set_rng_state(drawn)
            branch = make(channels=channels, num_classes=num_classes, seed=seed)
            if branch.trains_host:
                raise WsssError(
                    f"method.branches.{name}: trains the host, which the branches share; a method "
                    "that stands on its own weights, such as sipe_small or cpal_small, does not"
                )
            branch.name = name
            self.branches[name] = branch
        self.kinds = {name: _own(branch)[1] for name, branch in self._named()}
        self.trains_host = False

    def losses(self, seen: Seen, cam: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss terms of all branches as `NAME_TERM`."""
        return {
            f"{name}_{term}": loss
            for name, branch in self._named()
            for term, loss in branch.losses(seen, cam, batch).items()
        }

    def maps(self, seen: Seen, cam: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Each branch's own maps, by its name."""
        return {
            name: branch.maps(seen, cam, label)[_own(branch)[0]] for name, branch in self._named()
        }

    def learners(self) -> list[list[nn.Parameter]]:
        """The parameters of each branch."""
        return [list(branch.parameters()) for _, branch in self._named()]

    def callbacks(self) -> list[pl.Callback]:
        """Those of all branches."""
        return [one for _, branch in self._named() for one in branch.callbacks()]

    def before_maps(self, network: Network, images: WholeSet) -> None:
        """What each branch does."""
        for _, branch in self._named():
            branch.before_maps(network, images)

    def notes(self) -> dict[str, Any]:
        """Those of each branch."""
        return {name: branch.notes() for name, branch in self._named()}

    def training_figures(self, metrics: Path, folder: Path) -> list[Path]:
        """Those of each branch, in a folder of its name."""
        return [
            path
            for name, branch in self._named()
            for path in branch.training_figures(metrics, _made(folder / name))
        ]

    def figures(self, network: Network, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Those of each branch, in a folder of its name."""
        return [
            path
            for name, branch in self._named()
            for path in branch.figures(network, samples, _made(folder / name))
        ]

    def _named(self) -> list[tuple[str, Branch]]:
        return list(self.branches.items())  # type: ignore[arg-type]


def _own(branch: Branch) -> tuple[str, bool]:
    """The branch's own kind of map, and whether it has a background."""
    return list(branch.kinds.items())[-1]


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
