"""The command line: composition, error lines, exit codes."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss import console
from wsss.build import by_number
from wsss.build.compose import CONF
from wsss.errors import WsssError
from wsss.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from wsss.build.settings import Settings

DOCTOR = {"stage=doctor"}  # the check of the installation; `doctor` is put so
HELP = {"help", "--help", "-h"}
# Keys that have moved, so that an old command is told where to.
MOVED = {
    "trainer.max_epochs": "training.max_epochs",
    "trainer.gradient_clip_val": "training.gradient_clip_val",
    "method.neighbours": "method.neighbors",
}
MAX_SETTINGS = 150  # bytes of a folder's name; longer ones end in a hash
# Keys whose value is a path or a name, whatever it looks like.
WORDS = re.compile(
    r"(first\.\w+\.)?("
    r"run_name|input|checkpoint|paths\.\w+|data\.(name|root|sbd_root)"
    r"|data\.image_set\.(root|sbd_root|cache_dir|images|classes|labels|masks|splits"
    r"|annotations\.\w+|images\.\w+)"
    r"|(backbone|host|refine\.psa|segmentation\.network)\.weights|host\.(labels|maps)"
    r"|refine\.npy|segmentation\.(masks|checkpoint)|logger\.wandb\.(project|entity))"
)
# Quoted values, lists, mappings, and Hydra's functions.
LEFT_ALONE = re.compile(
    r"'.*'|\".*\"|\[.*\]|\{.*\}|(choice|range|interval|glob|shuffle|sort|tag|str)\(.*\)"
)


def settings_path(overrides: str) -> str:
    """Folder name of a run's overrides: `default` without any, shortened if it is too long."""
    from wsss.files import digest

    name = re.sub(r"[/\\\s]+", "_", overrides) or "default"
    if len(name.encode()) <= MAX_SETTINGS:
        return name
    first = name.encode()[: MAX_SETTINGS - 17].decode(errors="ignore")
    return f"{first}~{digest(name)}"


def run_name(*, _root_: Any) -> str:
    """Default name of a run: its experiment, else method and data set.

    OmegaConf hands over the whole configuration as `_root_`. Hydra's part is in it when a sweeper
    asks, before there is any job.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = _root_.hydra if "hydra" in _root_ else HydraConfig.get()
    choices = hydra.runtime.choices
    if choices.get("experiment"):
        return str(choices["experiment"])
    return f"{choices.get('method')}_{choices.get('data')}"


def choices_of(group: str) -> list[str]:
    """Options of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def head(path: Path) -> str:
    """First comment line of a configuration file: what it is."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def quote_paths(override: str, sweep: bool = True) -> str:
    """An override with its value quoted where it is a path or a name that Hydra would misread.

    Hydra's grammar wants quotes around `Kühe`, `My Photos (1)` or `seed=0/last.ckpt` and reads
    `2007` as a number; who gives a folder should not have to know. What is quoted, a list, a
    mapping, null, an interpolation or a sweep's function is left alone, as is what Hydra reads as
    it stands.

    Args:
        override: a word of the command line.
        sweep: whether commas part the values of a sweep, unless the whole is the path of something
            that exists.
    """
    key, equals, value = override.partition("=")
    if equals and WORDS.fullmatch(key.lstrip("+")):
        return f"{key}={_word(value, sweep)}"
    if re.search(r"[{}()'\"]", value) or "=" not in value or re.search(r"[\[\]]", value):
        return override
    return key + equals + ",".join(f"'{v}'" if "=" in v else v for v in value.split(","))


def _word(text: str, sweep: bool) -> str:
    """A path or a name as Hydra's grammar wants it."""
    try:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import Quote, QuotedString
        from hydra.errors import HydraException
    except ModuleNotFoundError:  # `doctor` says so
        return text
    path = os.path.expanduser(text)
    there = os.path.exists(path)
    if not there and (text == "null" or "${" in text or LEFT_ALONE.fullmatch(text)):
        return text
    if not there and sweep and "," in text:
        return ",".join(_word(one, False) for one in re.split(r",(?![^\[]*\])", text))
    try:
        read = OverridesParser.create().parse_override(f"key={path}")
        if not read.is_sweep_override() and (read.value() == path or "\\" in path):
            return path
    except HydraException:
        pass
    return QuotedString(path, Quote.single).with_quotes()


def overview() -> str:
    """The text of `--help`."""
    from wsss.stages import stage_names, stage_summary

    lines = [
        "wsss: weakly supervised semantic segmentation from image labels",
        "",
        "  python run.py experiment=NAME stage=STAGE [key=value ...]",
        "  python run.py -m experiment=NAME stage=train,make_cam,eval_cam seed=0,1,2",
        "  python run.py doctor [experiment=NAME] [key=value ...]",
        "",
        "stages (stage=...)",
        f"  {'all':<16}the stages of `pipeline`, in order; finished ones are skipped",
        *(f"  {name:<16}{stage_summary(name)}" for name in stage_names()),
    ]
    titles = {
        "host": "hosts",
        "method": "methods",
        "data": "data sets",
        "backbone": "backbones",
        "optimizer": "optimizers",
        "refine": "refinements",
        "segmentation": "segmentation networks",
        "trainer": "trainers",
        "logger": "loggers",
        "experiment": "experiments",
        "sweep": "searches",
        "debug": "debugging",
    }
    for group, title in titles.items():
        lines += ["", f"{title} ({group}=...)"]
        names = choices_of(group)
        width = max(map(len, names)) + 2
        lines += [f"  {n:<{width}}{head(CONF / group / f'{n}.yaml')}" for n in names]
    lines += ["", "A recipe with all of its keys: python run.py experiment=NAME --help"]
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """What an error says, as one line; the cause of an instantiation error is looked up."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WsssError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno in _DISK:
        return _disk_line(error)
    if isinstance(getattr(error, "override", None), str):  # Hydra's OverrideParseException
        return _unread(str(error.override))  # type: ignore[attr-defined]
    text = str(error).replace("\n", " ").strip()
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing:
        group, name = missing.groups()
        if group.startswith("hydra/"):
            return f"{group}={name}: not installed; Hydra's plugins: pip install -e '.[sweep]'"
        return f"{group}={name}: no such choice; there are {', '.join(choices_of(group))}"
    key = re.search(r"Could not override '([^']+)'", text)
    if key and key.group(1) in MOVED:
        return f"{key.group(1)} is called {MOVED[key.group(1)]} now"
    if key:
        return f"{key.group(1)}: unknown key; `python run.py --cfg job` lists all keys"
    return re.sub(r"\s+", " ", text) or type(error).__name__


def _unread(override: str) -> str:
    """What is said of a word of the command line that is no override."""
    key, equals, value = override.partition("=")
    if not equals:
        return (
            f"{override}: not understood; settings are key=value, and a value with blanks is "
            "written in quotes: 'data.root=My Photos'"
        )
    quoted = f"{key}='{value}'"
    return f'{override}: the value can\'t be read; write it in quotes: "{quoted}"'


def fail(line: str) -> None:
    """Print an error line."""
    print(f"error: {line}", file=sys.stderr, flush=True)


def _quiet() -> None:
    """Lightning's tips and notices that tell a user nothing about this program."""
    lightning = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")
    for name in (*lightning, "alembic"):  # the latter comes with Optuna
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning.*|lightning_fabric.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    # Lightning sends some of its warnings through PyTorch's own tree of modules.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*isinstance.treespec.*")


def settings_of(cfg: DictConfig, names: Sequence[str]) -> dict[str, Settings]:
    """Typed settings of each stage of a job, by its name in `pipeline`.

    `PART/STAGE` is a stage of a run inside the run: its settings are those of the job with the key
    `first.PART` over them, and its folders lie in `PART/`. What has a `_target_` or `name` of its
    own in `first.PART`, such as a choice of a group, stands in the place of the job's; all else is
    merged key by key.

    Raises:
        WsssError: something is wrong with them.
    """
    from omegaconf import OmegaConf, open_dict

    from wsss.build.settings import resolve_settings

    found: dict[str, Settings] = {}
    of_part: dict[str, Settings] = {}
    for name in names:
        part = name.rpartition("/")[0]
        if part not in of_part:
            own = cfg
            if part:
                changes = (cfg.get("first") or {}).get(part)
                if changes is None:
                    raise WsssError(f"stage={name}: the key first.{part} is not given")
                own = cfg.copy()
                with open_dict(own):
                    for key, value in changes.items():
                        if OmegaConf.is_dict(value) and {"_target_", "name"} & set(value):
                            own[key] = {}
                    own.merge_with(changes)
                    own.paths.run = str(Path(cfg.paths.run) / part)
            of_part[part] = resolve_settings(own)
        found[name] = of_part[part]
    return found


@dataclass(frozen=True)
class Composed:
    """A job as Hydra composed it, for this process or for those that it starts.

    Attributes:
        cfg: all settings.
        run: folder of the run.
        folder: folder of the job; of a single stage that of the stage.
        log: the job's log file.
        overrides: what was given on the command line or by the sweeper.
        number: of the job in its sweep; 0 for a single one.
        debug: whether errors are shown with their tracebacks.
    """

    cfg: DictConfig
    run: Path
    folder: Path
    log: Path
    overrides: tuple[str, ...]
    number: int
    debug: bool


@dataclass(frozen=True)
class Ended:
    """How a job has ended.

    Attributes:
        code: exit code; above 128 the signal that ended it.
        line: why, where the code is not 0.
        expected: whether that was the user's input rather than a fault of the program.
        miou: what the last stage answered.
    """

    code: int = 0
    line: str = ""
    expected: bool = True
    miou: float | None = None


def _job(cfg: object, debug: bool) -> float | None:
    """One composed job: its stage, or all of them."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, open_dict

    from wsss.run.signals import Signalled

    assert isinstance(cfg, DictConfig)
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    run = folder.parents[str(cfg.stage).count("/")]
    with open_dict(cfg):
        cfg.paths.run = str(run)
        cfg.run_name = str(cfg.run_name)
    sweep = hydra.mode == RunMode.MULTIRUN
    log = folder / f"{hydra.job.name}.log"
    number, given = hydra.job.num if sweep else 0, tuple(hydra.overrides.task)
    ended = _work(Composed(cfg, run, folder, log, given, number, debug))
    if ended.code > 128:
        raise Signalled(ended.code)
    if ended.code:
        fail(ended.line)
        if not sweep or (debug and not ended.expected):
            sys.exit(1)  # no `raise`: Hydra would go through a sweep's other jobs first
    return ended.miou  # the other jobs of a sweep go on; main() tells of a failed one at the end


def _work(job: Composed) -> Ended:
    """Do a job, together with the processes that do it, too."""
    from wsss.build.plan import check_batches
    from wsss.files import remove_parts
    from wsss.run import failures, launch, signals
    from wsss.run.group import group_of, lead, wait_for_all
    from wsss.run.logs import finish_wandb
    from wsss.run.process import is_main_process, place, say
    from wsss.stages import get_stage

    if not job.debug:
        _quiet()  # once more: the processes of a parallel launcher begin here
    cfg, code, name, group = job.cfg, 1, str(job.cfg.stage), None
    if is_main_process():
        failures.forget(job.folder)
    try:
        stages = [str(one) for one in cfg.pipeline] if name == "all" else [name]
        work = [get_stage(one.rpartition("/")[2]) for one in stages]
        settings = settings_of(cfg, stages)
        if line := by_number.chosen(cfg):
            say(line)
        trainer, where = settings[stages[0]].trainer, place()
        count = where.world if where.launcher else launch.processes_of(trainer)
        if not where.launcher and count > 1:
            launch.check_place(where, trainer)
            check_batches(settings, count)
            return launch.launch(count, _work_as_one_of_several, job)
        miou = None
        with group_of(f"job {job.number}", launch.uses_gpu(trainer)) as group:
            launch.check_place(where, trainer)
            lead(lambda: check_batches(settings, count))
            if is_main_process():
                remove_parts(Path(str(cfg.paths.cache)).expanduser())
            for number, (name, stage) in enumerate(zip(stages, work, strict=True), 1):
                if len(work) > 1:
                    say(f"[{number}/{len(work)}] {name}")
                if is_main_process():
                    failures.forget(job.run / name)
                miou = stage(settings[name]).miou
                finish_wandb(0)  # the next stage has a run of its own
                wait_for_all()  # the next stage reads what the main process has just written
        code = 0
        return Ended(miou=miou)
    except (Exception, signals.Signalled) as error:
        signalled, expected = signals.behind(error), _is_users(error)
        line, code = one_line(error), 1
        if signalled is not None:
            line, code = signalled.line, int(str(signalled.code))
        if group is not None:
            end = group.fail(line, code, error)
            # Another process's, which tells of it.
            expected = expected or group.lost is not None or end.line != line
            line, code = end.line, end.code
        if code < 128:
            told = failures.Failure(job.number, name, job.overrides, line, str(job.log))
            failures.note(job.run / name, told, is_main_process())
            if job.debug or not expected:
                traceback.print_exc()
        return Ended(code, line, expected)
    finally:
        finish_wandb(code)


def _work_as_one_of_several(job: Composed) -> Ended:
    """`_work` in a process that was started for it."""
    from wsss.run import signals

    signals.listen()
    _register_resolvers()
    return _work(job)


def compose_for_doctor(overrides: list[str]) -> Settings:
    """The settings that a command line stands for, without any folder for them.

    Args:
        overrides: what stands on the command line besides `doctor`.

    Raises:
        HydraException: an unknown key or choice.
        WsssError: something else is wrong with a key.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    _register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*overrides, "stage=doctor"])
    with open_dict(cfg):
        cfg.paths.run, cfg.run_name = str(Path(str(cfg.paths.outputs)) / "doctor"), "doctor"
    return settings_of(cfg, ["doctor"])["doctor"]


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    by_number.register()


# What a disk or its rights can do to any write.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def _disk_line(error: OSError) -> str:
    """A failed write as one line with its way out."""
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror}; make room or get the right to write there, or give "
        "paths.outputs=FOLDER (and paths.cache) elsewhere"
    )


def _guarded(work: Callable[[], object], debug: bool) -> int:
    """Exit code of `work`, its errors told."""
    from wsss.run import signals
    from wsss.run.process import is_main_process

    signals.listen()
    try:
        work()
    except signals.Signalled as error:
        fail(error.line)
        if error.code == 128 + signal.SIGUSR1 and is_main_process():
            signals.requeue()
        return int(str(error.code))
    except Exception as error:
        if debug or not _is_users(error):
            traceback.print_exc()
        fail(one_line(error))
        return 1
    return 0


def _run_jobs(debug: bool) -> None:
    """Hand the command line to Hydra, which calls `_job` once or, in a sweep, often."""
    import hydra

    from wsss.run.process import is_main_process

    _register_resolvers()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: object) -> float | None:
        return _job(cfg, debug)

    if not is_main_process():  # of several processes one writes Hydra's notes and log
        # Beside the other overrides: argparse wants them in one place.
        first = [n for n, a in enumerate(sys.argv[1:], 1) if "=" in a and not a.startswith("-")]
        place = first[0] if first else len(sys.argv)
        sys.argv[place:place] = [
            "hydra.output_subdir=null",
            "hydra/job_logging=none",
            "hydra/hydra_logging=none",
        ]
    job()


def main() -> None:
    """Run a stage; bad input ends with one line and exit code 1, as does a sweep's failed job."""
    arguments = sys.argv[1:]
    asked = HELP & set(arguments)
    if not arguments or (asked and len(arguments) == len(asked)):
        print(overview())
        return
    if arguments == ["--version"]:
        print(f"wsss {__version__}")
        return
    if console.COMPLETION & set(arguments) and "query=bash" in arguments and console.complete():
        return
    try:
        words = console.understood([a for a in arguments if a not in HELP])
        sweep = bool({"-m", "--multirun"} & set(words))
        others = [quote_paths(a, sweep) for a in words]
        if asked:
            print(console.recipe_help([a for a in others if not a.startswith(("-", "stage="))]))
            return
    except WsssError as error:
        fail(one_line(error))
        sys.exit(1)
    arguments = others
    # `run.py experiment=x -m stage=a,b`: argparse wants its flags before the overrides.
    flags = [a for a in arguments if a in ("-m", "--multirun")]
    arguments = [a for a in arguments if a not in flags]
    sys.argv[1:] = flags + arguments
    debug = any(argument.startswith("debug=") for argument in arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    if not debug:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a torn connection is told by us
        _quiet()
    if DOCTOR & set(arguments):
        from wsss.build.doctor import examine  # needs nothing that may be missing

        overrides = [a for a in arguments if a not in DOCTOR]
        sys.exit(_guarded(lambda: examine(lambda: compose_for_doctor(overrides)), debug))
    if importlib.util.find_spec("hydra") is None:
        fail("Hydra is not installed; `python run.py doctor` says what is missing")
        sys.exit(1)
    from wsss.run import failures

    try:
        code = _guarded(lambda: _run_jobs(debug), debug)
    finally:
        failed = failures.collect()
        if failed:
            first, *others = failures.summary(failed)
            fail(first)
            print("\n".join(others), file=sys.stderr, flush=True)
    if code or failed:
        sys.exit(code or 1)


def _is_users(error: BaseException) -> bool:
    """Whether an error is about the user's input rather than a fault of the program."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WsssError):
            return True
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, (HydraException, OmegaConfBaseException))
