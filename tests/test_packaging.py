"""The files that set the project up agree with one another, and the set-up survives failures."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
SET_UP_FILES = ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile"]
SET_UP_FILES += ["tools/setup.sh", ".ci/run"]


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item.specifier for item in parsed}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def environment() -> tuple[list[str], list[str]]:
    """The requirements that conda gets, and those that it hands to pip."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in entries if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return conda, [entry for entry in pip if not entry.startswith("-")]


INSTALLED = requirements(PYPROJECT["dependencies"] + EXTRAS["dev"])


def test_constraints_pin_every_named_dependency_within_its_floor() -> None:
    pins = constraints()
    for name, floor in (
        INSTALLED | requirements([one for extra in EXTRAS.values() for one in extra])
    ).items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert floor.contains(pins[name]), f"{name}=={pins[name]} breaks {name}{floor}"


def test_constraints_name_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    assert len(names) == len({canonicalize_name(name) for name in names})


def test_conda_environment_has_the_same_set() -> None:
    conda, pip = environment()
    named = requirements([entry for entry in conda if not entry.startswith("python=")] + pip)
    for extra in ("pip", "cxx-compiler"):
        named.pop(extra)
    assert set(named) == set(INSTALLED)
    pins = constraints()
    for name, specifier in named.items():
        pair = name in ("torch", "torchvision")
        assert specifier == (SpecifierSet(f"=={pins[name]}") if pair else INSTALLED[name]), name


def test_everything_that_needs_torch_comes_from_pip_in_the_conda_environment() -> None:
    """conda-forge's packages that depend on torch would bring a second torch."""
    _, pip = environment()
    from_pip = set(requirements(pip))
    for name in INSTALLED:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # pydensecrf2, where it did not build
        always = [Requirement(need) for need in needs if "extra" not in need]
        if any(need.name == "torch" for need in always):
            assert name in from_pip, name


def test_every_floor_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    floors = [line for line in text.splitlines() if re.match(r'\s+"[\w-]+>=', line)]
    assert len(floors) == len(PYPROJECT["dependencies"]) + sum(map(len, EXTRAS.values()))
    for line in floors:
        assert re.search(r'",?  # \S.{8,}', line), f"no reason: {line.strip()}"


def test_installed_packages_satisfy_the_floors() -> None:
    for name, floor in INSTALLED.items():
        if name != "pydensecrf2":  # optional from Python 3.13 on
            assert floor.contains(importlib.metadata.version(name), prereleases=True), name


def test_torch_and_torchvision_are_a_pair_that_works() -> None:
    """An operator compiled for another torch is missing or fails when it is called."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    assert kept.tolist() == [0, 2]


def test_no_file_names_a_registry() -> None:
    for name in SET_UP_FILES:
        assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text()), name


def test_python_range_is_the_same_everywhere() -> None:
    allowed = SpecifierSet(PYPROJECT["requires-python"])
    supported = {f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}")}
    setup = (ROOT / "tools/setup.sh").read_text()
    (candidates,) = re.findall(r'^pythons="(.*)"$', setup, flags=re.MULTILINE)
    assert set(re.findall(r"python(3\.\d+)", candidates)) == supported
    ((low, high),) = re.findall(r"\((\d+, \d+)\) <= sys.version_info\[:2\] <= \((.*?)\)", setup)
    ends = sorted(supported, key=lambda version: int(version.split(".")[1]))
    assert [low.replace(", ", "."), high.replace(", ", ".")] == [ends[0], ends[-1]]
    conda, _ = environment()
    (conda_python,) = [entry for entry in conda if entry.startswith("python=")]
    assert conda_python.removeprefix("python=") in supported


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]
    found = set()
    for path in (ROOT / "wsss").rglob("*"):
        package = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        compiled = "__pycache__" in path.parts
        if path.is_file() and not compiled and path.suffix not in (".py", ".md"):
            wanted = patterns.get(package, []) + patterns.get("*", [])
            assert any(path.match(pattern) for pattern in wanted), path
            found.add(path.name)
    assert {"scenes.safetensors", "gallery.html", "page.html.j2", "py.typed"} <= found


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, flags=re.MULTILINE))
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make ([\w-]+) +\S", shown.stdout, flags=re.MULTILINE)) == targets
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert set(phony.split()) == targets
    assert {"help", "setup", "demo", "test", "lint", "format", "bench", "clean"} <= targets


@pytest.mark.slow
def test_a_wheel_runs_from_any_folder_with_its_configuration(tmp_path: Path) -> None:
    source, target, work = (tmp_path / name for name in ("source", "target", "work"))
    work.mkdir()
    for name in ("wsss", "conf"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("wsss-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    yaml_files = {f"wsss/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in inside if name.endswith(".yaml")} == yaml_files
    endings = {".py", ".typed", ".safetensors", ".html", ".j2"}
    files = [path for path in (ROOT / "wsss").rglob("*") if path.suffix in endings]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= inside

    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    env = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def wsss(*arguments: str) -> str:
        command = [str(target / "bin" / "wsss"), *arguments]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert wsss("--version") == f"wsss {PYPROJECT['version']}\n"
    small = [f"data.image_set.{size}" for size in ("n_train=2", "n_val=2", "size=64")]
    done = wsss("prepare", "experiment=demo", *small)
    assert "prepare" in done and list((work / "outputs" / "demo").rglob("manifest.json"))
    code = "import wsss; print(wsss.__file__)"
    where = subprocess.check_output([sys.executable, "-c", code], cwd=work, env=env, text=True)
    assert where.startswith(str(target))


# A stand-in for Python that notes what it is asked for: with it the set-up takes a moment.
FAKE_PYTHON = """#!/bin/bash
here=$(dirname "$0")
case "$*" in
    -) exit 0 ;;  # the check of the interpreter: nothing wrong
    --version) echo "Python 3.12.0" ;;
    "-c import pydensecrf") exit 0 ;;
    "-m venv --clear .venv")
        rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python
        echo venv >>calls ;;
    "-m pip install"*)
        echo "pip ${*: -2}" >>calls
        if [ -e kill-pip ]; then kill -9 $$; fi
        if [ -e fail-pip ]; then echo "ERROR: no such thing"; exit 1; fi ;;
    *) echo "unexpected: $*" >>calls; exit 1 ;;
esac
"""
VENV, TORCH, REST = "venv", "pip torch torchvision", "pip --editable .[dev]"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that the set-up reads, with the stand-in as `fakepython`."""
    for name in SET_UP_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    fake = tmp_path / "fakepython"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


def make_setup(checkout: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs `make setup`; returns how it went and what the stand-in was asked for meanwhile."""
    calls = checkout / "calls"
    calls.write_text("")
    # Started by `make test`, this would otherwise take over that make's flags.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={checkout / 'fakepython'}"],
        cwd=checkout,
        env=clean,
        capture_output=True,
        text=True,
    )
    return done, calls.read_text().splitlines()


def test_set_up_runs_once_and_again_after_a_change(checkout: Path) -> None:
    done, calls = make_setup(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls == [VENV, TORCH, REST]
    assert make_setup(checkout)[1] == []
    later = (checkout / ".venv/.ready").stat().st_mtime + 5
    os.utime(checkout / "constraints.txt", (later, later))
    assert make_setup(checkout)[1] == [TORCH, REST], "a change completes .venv, keeping it"


def test_set_up_that_failed_says_why_and_is_taken_up_again(checkout: Path) -> None:
    (checkout / "fail-pip").touch()
    done, calls = make_setup(checkout)
    assert done.returncode != 0 and calls == [VENV, TORCH]
    assert "ERROR: no such thing" in done.stderr
    (checkout / "fail-pip").unlink()
    done, calls = make_setup(checkout)
    assert done.returncode == 0 and calls == [TORCH, REST]


def test_set_up_that_was_killed_starts_anew(checkout: Path) -> None:
    (checkout / "kill-pip").touch()
    done, calls = make_setup(checkout)
    assert done.returncode != 0 and calls == [VENV, TORCH]
    (checkout / "kill-pip").unlink()
    done, calls = make_setup(checkout)
    assert done.returncode == 0 and calls == [VENV, TORCH, REST]
    assert "interrupted" in done.stdout


def test_a_python_that_fails_to_start_is_passed_over(checkout: Path) -> None:
    folder = checkout / "bin"
    folder.mkdir()
    stand_in = folder / "python3.12"  # as version managers leave them for what is not installed
    stand_in.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    stand_in.chmod(0o755)
    shutil.copy(checkout / "fakepython", folder / "python3.11")
    for tool in ("bash", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    command = ["bash", "tools/setup.sh", "--which"]
    result = subprocess.run(
        command, cwd=checkout, env={"PATH": str(folder)}, capture_output=True, text=True
    )
    assert result.stdout.strip() == "python3.11", result.stderr
    (folder / "python3.11").unlink()
    result = subprocess.run(
        command, cwd=checkout, env={"PATH": str(folder)}, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "python3.12: does not start" in result.stderr
    assert "python3.11: not found" in result.stderr
