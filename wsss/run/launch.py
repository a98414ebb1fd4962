"""Starting the processes of a job: torchrun's own engine on one machine, and Lightning's view."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from lightning_fabric.plugins.environments import ClusterEnvironment

from wsss.errors import WsssError
from wsss.run.process import Place, place
from wsss.run.signals import Signalled

Answer = TypeVar("Answer")

DEVICES = "trainer.devices"


class Hardware(Protocol):
    """What the settings of `trainer` say of it."""

    @property
    def accelerator(self) -> str:
        """Kind of device."""

    @property
    def devices(self) -> Any:
        """How many, or which."""

    @property
    def num_nodes(self) -> int:
        """How many machines."""


def uses_gpu(trainer: Hardware) -> bool:
    """Whether `trainer.accelerator` stands for NVIDIA's GPUs on this machine."""
    return trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def processes_of(trainer: Hardware) -> int:
    """How many processes of one machine `trainer.devices` stands for."""
    devices = trainer.devices
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        return max(1, torch.cuda.device_count()) if uses_gpu(trainer) else 1
    return int(devices)


def check_place(where: Place, trainer: Hardware) -> None:
    """Check that the settings and what was started are one.

    A launcher decides how many processes there are; `trainer.devices=1` and `trainer.num_nodes=1`
    say nothing.

    Raises:
        WsssError: they are not, with the way out.
    """
    if not where.launcher:
        if trainer.num_nodes > 1:
            raise WsssError(
                f"trainer.num_nodes={trainer.num_nodes}: start the command on each of them by "
                "torchrun or by Slurm's srun; this is a single process"
            )
        return
    count = 1 if trainer.devices in ("auto", -1) else processes_of(trainer)
    if count not in (1, where.local_world):
        raise WsssError(
            f"{DEVICES}={count}, but {where.launcher} has started {where.local_world} of the "
            f"command's {where.world} processes on this machine: start {count} there, or leave "
            f"{DEVICES} out"
        )
    if trainer.num_nodes not in (1, where.nodes):
        raise WsssError(
            f"trainer.num_nodes={trainer.num_nodes}, but {where.launcher} has started the command "
            f"on {where.nodes}: leave trainer.num_nodes out"
        )
    if uses_gpu(trainer) and torch.cuda.device_count() < where.local_world:
        raise WsssError(
            f"{where.local_world} processes on this machine, but each sees "
            f"{torch.cuda.device_count()} GPUs: let each see all of its machine's (Slurm: "
            "--gpus-per-node, not --gpus-per-task), or start fewer"
        )


def launch(count: int, work: Callable[..., Answer], *given: Any) -> Answer:
    """Do `work` in several processes of this machine; what main answers.

    They end with this one, and all of them when one is killed.

    Args:
        count: how many.
        work: a function of a module; it is called with `given` in each process.
        given: what can be pickled.

    Raises:
        WsssError: one was killed.
        Signalled: this process was asked to end, and so were they.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    spawning = "torch.multiprocessing.spawn"
    for name in (spawning, *logging.root.manager.loggerDict):
        if name == spawning or name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its ends are told by us
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory(prefix="wsss_") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="wsss",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            return elastic_launch(config, work)(*given)[0]
        except SignalException as error:
            raise Signalled(128 + error.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = failure.exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WsssError(
                f"process {rank} of {count} (process {failure.pid} on this machine) was killed "
                f"({how}); the same command goes on where it was"
            ) from None
        finally:
            for one, answer in before.items():
                signal.signal(one, answer)


class Started(ClusterEnvironment):
    """Tells Lightning that all processes are there, and which one this is.

    The same for all launchers. Lightning's own view of Slurm asks for `--ntasks-per-node`, and
    saves and requeues in a way of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = place()

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Not asked for, as the group is there."""
        return "localhost"

    @property
    def main_port(self) -> int:
        """Not asked for, as the group is there."""
        return 0

    @staticmethod
    def detect() -> bool:
        """It is given, not detected."""
        return False

    def world_size(self) -> int:
        """How many processes there are."""
        return self.place.world

    def set_world_size(self, size: int) -> None:
        """The launcher has set it."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has set it."""

    def local_rank(self) -> int:
        """Its number on its machine."""
        return self.place.local_rank

    def node_rank(self) -> int:
        """Number of its machine."""
        return self.place.node
