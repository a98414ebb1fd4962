"""Gather the pages of the documentation site into build/docs; `make docs` builds the site of them.

    python tools/docs.py

Nothing is written twice: pages are sections of README.md and CONTRIBUTING.md, the pages of methods
and hosts, what the comments in conf/ say of every key, and the docstrings of the Python API.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from wsss.build.keys import comments_of_choice, head_of, shown
from wsss.stages import stage_names

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PAGES = ROOT / "build" / "docs"

# A page, its title, and the sections that it is made of (a file and a heading; None: all of it).
SECTIONS: dict[str, tuple[str, list[tuple[str, str | None]]]] = {
    "index.md": ("wsss", [("README.md", "wsss"), ("README.md", "Two commands")]),
    "first_steps.md": (
        "First steps",
        [
            ("README.md", "Your first real run"),
            ("README.md", "PASCAL VOC 2012 with SBD"),
            ("README.md", "Photographs of your own"),
            ("README.md", "COCO 2014"),
        ],
    ),
    "sweeps.md": ("Sweeps and reports", [("README.md", "Sweeps")]),
    "segmentation.md": ("Segmentation", [("README.md", "Segmentation")]),
    "hardware.md": (
        "Hardware and scaling",
        [("README.md", "Hardware and dashboards"), ("docs/scaling.md", None)],
    ),
    "results.md": ("Results", [("README.md", "Results")]),
    "house.md": ("The house", [("README.md", "The house")]),
    "extend.md": ("Add a host, method, data set", [("CONTRIBUTING.md", "Where things are")]),
    "contributing.md": (
        "Contribute",
        [
            ("CONTRIBUTING.md", "Set up, test, lint"),
            ("CONTRIBUTING.md", "Tests"),
            ("CONTRIBUTING.md", "Style"),
            ("CONTRIBUTING.md", "Docs"),
            ("CONTRIBUTING.md", "Commits"),
        ],
    ),
    "methods/overview.md": ("Hosts and methods", [("README.md", "Hosts and methods")]),
    "methods/sipe.md": ("SIPE", [("wsss/methods/sipe/README.md", None)]),
    "methods/cpal.md": ("CPAL", [("wsss/methods/cpal/README.md", None)]),
    "methods/amn.md": ("AMN", [("wsss/hosts/amn/README.md", None)]),
    "methods/mctformer.md": ("MCTformer", [("wsss/hosts/mctformer/README.md", None)]),
    "methods/clip_es.md": ("CLIP-ES", [("wsss/hosts/clip_es/README.md", None)]),
    "changes.md": ("Changes", [("CHANGELOG.md", None)]),
}

# The maths whose functions have a page each, by module.
MATHS = {
    "sipe": "wsss.methods.sipe.functional",
    "cpal": "wsss.methods.cpal.functional",
    "amn": "wsss.hosts.amn.functional",
    "mctformer": "wsss.hosts.mctformer.functional",
    "clip_es": "wsss.hosts.clip_es.functional",
    "maps": "wsss.maps.functional",
    "structure": "wsss.maps.structure",
}

GROUPS = {
    "data": "Data sets",
    "backbone": "Backbones",
    "host": "Hosts",
    "method": "Methods",
    "optimizer": "Optimizers",
    "refine": "From class maps to pseudo masks",
    "segmentation": "Segmentation networks",
    "trainer": "Hardware",
    "logger": "Loggers",
    "callbacks": "Callbacks",
    "sweep": "Searches",
    "debug": "Debugging",
}

HEADING = re.compile(r"^(#+) (.+)$")


def section(text: str, heading: str) -> str:
    """The part of a Markdown text under a heading, the heading apart.

    It ends at the next heading of the same rank or above; of `wsss`, the title, at any.
    """
    found: list[str] = []
    rank = 0
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        match = None if fenced else HEADING.match(line)
        if rank and match and (len(match[1]) <= rank or rank == 1):
            break
        if rank:
            found.append(line)
        elif match and match[2] == heading:
            rank = len(match[1])
    if not rank:
        raise SystemExit(f"docs: there is no heading '{heading}' any more; see SECTIONS")
    return "\n".join(found).strip("\n")


def without(text: str, headings: set[str]) -> str:
    """A text without the sections under some headings: they have pages of their own."""
    for heading in headings:
        if re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE):
            inner = section(text, heading)
            text = re.sub(rf"^#+ {re.escape(heading)}\n+{re.escape(inner)}", "", text, flags=re.M)
    return text.strip("\n")


def page_of(target: str) -> str | None:
    """The page that a file of the repository went into."""
    pages = {f: page for page, (_, parts) in reversed(SECTIONS.items()) for f, _ in parts}
    return pages.get(target)


def linked(text: str, file: str, page: str) -> str:
    """Links of a file as links of a page: to other pages and to pictures."""

    def put(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if "://" in target or target.startswith("#"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target.split("#")[0]))
        if path.endswith(".png"):
            (PAGES / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, PAGES / "pictures" / Path(path).name)
            path = f"pictures/{Path(path).name}"
        elif target == "README.md#the-house":
            path = "house.md"
        elif (found := page_of(path)) is not None:
            path = found
        else:
            return label.removeprefix("!").strip("[]")
        return f"{label}({posixpath.relpath(path, posixpath.dirname(page) or '.')})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", put, text)


def with_math(text: str) -> str:
    """Blocks of LaTeX as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def put(match: re.Match[str]) -> str:
        return f'<div class="math">{convert(match[1].strip(), display="block")}</div>'

    return re.sub(r"^```math\n(.*?)^```$", put, text, flags=re.DOTALL | re.MULTILINE)


def raised(text: str, rank: int) -> str:
    """The same with its highest headings brought to a rank, the others below them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    ranks = [len(m[1]) for line in prose.splitlines() if (m := HEADING.match(line))]
    if not ranks:
        return text
    shift = rank - min(ranks)
    fenced = False
    lines = []
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        match = None if fenced else HEADING.match(line)
        lines.append(f"{'#' * (len(match[1]) + shift)} {match[2]}" if match else line)
    return "\n".join(lines)


def write(page: str, text: str) -> None:
    """Write a page."""
    path = PAGES / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.strip() + "\n", encoding="utf-8")


def write_sections() -> None:
    """Pages made of sections of files."""
    own = {heading for _, parts in SECTIONS.values() for _, heading in parts if heading}
    for page, (title, parts) in SECTIONS.items():
        texts = []
        for file, heading in parts:
            if not (ROOT / file).is_file():
                continue
            text = (ROOT / file).read_text(encoding="utf-8")
            if heading is None:
                first, _, part = text.partition("\n")
                head = first.removeprefix("# ")
            else:
                head = heading
                part = without(section(text, heading), own - {heading} | {"From Python"})
            part = with_math(linked(part, file, page))
            if len(parts) > 1 and head not in (title, "Two commands"):
                part = f"## {head}\n\n{raised(part, 3)}"
            else:
                part = raised(part, 2)
            texts.append(part)
        name = Path(page).stem
        if name in MATHS:
            texts.append(f"## Functions\n\n::: {MATHS[name]}\n    options:\n      heading_level: 3")
        if texts:
            write(page, f"# {title}\n\n" + "\n\n".join(texts))


def docstring(path: Path) -> str:
    """The docstring of a module, without importing it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def write_chain() -> None:
    """The chain of stages: README's table, then what each one's module says."""
    text = section((ROOT / "README.md").read_text(encoding="utf-8"), "Your first real run")
    table = next(part for part in text.split("\n\n") if part.startswith("| stage "))
    lines = ["# The chain", ""]
    lines += [
        "Every stage reads what earlier ones wrote and writes a folder of its own.",
        "",
        table,
    ]
    for name in stage_names():
        lines += ["", f"## {name}", "", docstring(ROOT / "wsss" / "stages" / f"{name}.py")]
    write("chain.md", "\n".join(lines))


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def keys_table(content: dict[str, Any], comments: dict[str, str], prefix: str) -> list[str]:
    """A table of keys, defaults and what their comments say."""
    lines = ["| key | default | |", "|---|---|---|"]

    def put(node: dict[str, Any], before: str) -> None:
        for key, value in node.items():
            name = f"{before}{key}"
            inner = isinstance(value, dict) and bool(value)
            if key != "defaults" and (not inner or name in comments):
                default = "" if inner else f"`{cell(shown(value))}`"
                lines.append(f"| `{prefix}{name}` | {default} | {cell(comments.get(name, ''))} |")
            if inner:
                put(value, f"{name}.")

    put(content, "")
    return lines


def standing_on(path: Path) -> list[str]:
    """The choices that a choice of a group begins with."""
    own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    entries = own.get("defaults") or []
    names = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [name.partition("@")[0] for name in names]


def own_keys(path: Path) -> dict[str, Any]:
    """What a configuration file itself sets."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: value for key, value in content.items() if key != "defaults"}


def head_text(path: Path) -> str:
    """The comment at the head of a configuration file: sentences, and commands as code."""
    lines = head_of(path)
    first = lines[0] if lines else ""
    rest = "\n".join(lines[1:])
    return f"{cell(first)}\n" + (f"\n```text\n{rest}\n```\n" if rest.strip() else "")


def write_configuration() -> None:
    """A page for the root's keys, one for each group, and one for the recipes."""
    root = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    content = {key: value for key, value in root.items() if key not in ("defaults", "hydra")}
    comments = comments_of_choice(CONF, ".", "config")
    lines = ["# Configuration", ""]
    lines += [
        "Any key can stand on the command line, `key=value`, be swept, `key=a,b` with `-m`, and is"
    ]
    lines += [
        "found in the manifest of the results. `wsss experiment=NAME --help` shows all of a recipe."
    ]
    lines += ["", "| group | choices |", "|---|---|"]
    for group, title in GROUPS.items():
        names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        lines.append(f"| [{title}]({group}.md) | {', '.join(f'`{group}={n}`' for n in names)} |")
    lines += ["", "## Keys of the program", "", *keys_table(content, comments, "")]
    write("configuration/index.md", "\n".join(lines))
    for group, title in GROUPS.items():
        prefix = "" if group in ("sweep", "debug") else f"{group}."
        lines = [f"# {title}"]
        paths = (CONF / group).glob("*.yaml")
        for path in sorted(paths, key=lambda p: (bool(standing_on(p)), p.stem != "default", p)):
            comments = comments_of_choice(CONF, group, path.stem)
            lines += ["", f"## {group}={path.stem}", "", head_text(path), ""]
            if parents := standing_on(path):
                lines += [f"What differs from {', '.join(f'`{group}={p}`' for p in parents)}:", ""]
            lines += keys_table(own_keys(path), comments, prefix) if own_keys(path) else []
        write(f"configuration/{group}.md", "\n".join(lines))
    lines = [
        "# Recipes",
        "",
        "`experiment=NAME` sets all that belongs to a published row or a purpose.",
    ]
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        lines += ["", f"## {path.stem}", "", head_text(path)]
    write("configuration/experiment.md", "\n".join(lines))


def write_python() -> None:
    """The Python API, from its docstrings."""
    text = section((ROOT / "README.md").read_text(encoding="utf-8"), "From Python")
    lines = ["# Python", "", text]
    names = (
        "load SeedModel SegmentationModel Prediction evaluate Evaluation read_maps save push pull"
    )
    for name in (*names.split(), "SeedUse"):
        lines += ["", f"::: wsss.api.{name}", "    options:", f"      heading: wsss.{name}"]
    lines += ["", "::: wsss.maps.files.ClassMaps", "", "::: wsss.errors.WsssError"]
    write("python.md", "\n".join(lines))
    write(
        "maths.md",
        "# Class maps\n\nWhat all methods stand on, as pure functions of tensors.\n\n"
        + "\n\n".join(
            f"::: {MATHS[name]}\n    options:\n      heading_level: 2"
            for name in ("maps", "structure")
        ),
    )


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(PAGES, ignore_errors=True)
    write_sections()
    write_chain()
    write_configuration()
    write_python()
    write("style.css", ".math { overflow-x: auto; padding: .4em 0 }")


if __name__ == "__main__":
    main()
