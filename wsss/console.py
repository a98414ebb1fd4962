"""Words of the command line that are no settings: stages by name, completion, help on a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches

from wsss.build.compose import CONF
from wsss.errors import WsssError
from wsss.files import flatten

COMPLETION = {"-sc", "--shell_completion"}  # Hydra's flag


def understood(arguments: Sequence[str]) -> list[str]:
    """Arguments with stages by name put as settings: `train` as `stage=train`.

    Several of them, `train make_cam`, are run one after the other, as `-m stage=train,make_cam` is.

    Raises:
        WsssError: a word that is no stage.
    """
    from wsss.stages import stage_names

    known = {"all", *stage_names()}
    stages: list[str] = []
    others: list[str] = []
    takes_value = False
    for argument in arguments:
        if takes_value or "=" in argument or argument.startswith(("-", "~")):
            others.append(argument)
            takes_value = argument in VALUED
            continue
        for word in argument.split(","):
            if word.rpartition("/")[2] not in known:
                close = get_close_matches(word, known, n=1)
                hint = (
                    f"is {close[0]} meant?"
                    if close
                    else "settings are key=value, in quotes where there are blanks"
                )
                raise WsssError(f"{word}: no such stage; {hint} (`help` lists all)")
            stages.append(word)
    if not stages:
        return others
    if len(stages) > 1 and not {"-m", "--multirun"} & set(others):
        others.insert(0, "-m")
    return [*others, f"stage={','.join(stages)}"]


# Hydra's flags whose value is the next argument.
VALUED = frozenset(
    "--cfg -c --package -p --info -i --config-path -cp --config-name -cn --config-dir -cd "
    "--experimental-rerun".split()
)


def completed(line: str) -> list[str] | None:
    """Completions of the last word of a command line, where it is about stages.

    Args:
        line: all that is typed, the program first.

    Returns:
        None: it is for Hydra, which knows groups, choices and keys.
    """
    from wsss.stages import stage_names

    words = line.split()
    last = "" if line.endswith(" ") else words[-1]
    if last.startswith("stage="):
        before, comma, _ = last.removeprefix("stage=").rpartition(",")
        begin = f"stage={before}{comma}"
        return [
            f"{begin}{name}"
            for name in ("all", *stage_names())
            if f"{begin}{name}".startswith(last)
        ]
    if last and "=" not in last and not last.startswith("-"):
        found = [name for name in ("all", "help", *stage_names()) if name.startswith(last)]
        return found or None
    return None


def complete() -> bool:
    """Print completions where a shell asks for them by Hydra's flag; False: they are for Hydra."""
    found = completed(os.environ.get("COMP_LINE", ""))
    if found is not None:
        print(" ".join(found))
    return found is not None


def recipe_help(overrides: Sequence[str]) -> str:
    """What a recipe is and all of its keys, with values and comments.

    Args:
        overrides: what else stands on the command line, such as `experiment=cam_voc`.

    Raises:
        WsssError: an unknown key or choice.
    """
    from wsss.build.compose import composed
    from wsss.build.keys import all_comments, head_of, written

    content, choices = composed(overrides)
    groups = {g: one for g, one in choices.items() if one and not set("/@") & set(g)}
    name = groups.pop("experiment", None)
    chosen = [f"{group}={one}" for group, one in groups.items()]
    # The same choices without the recipe: what differs is what it sets.
    given = [one for one in overrides if not one.startswith("experiment=")]
    ours, theirs = flatten(content), flatten(composed([*chosen, *given])[0])
    marked = {key for key, value in ours.items() if key not in theirs or theirs[key] != value}
    lines = head_of(CONF / "experiment" / f"{name}.yaml") if name else ["No recipe: the defaults."]
    lines += ["", "Choices: " + " ".join(chosen), ""]
    lines += ["All keys (* set by the recipe); any can stand on the command line, key=value:", ""]
    return "\n".join([*lines, written(content, all_comments(CONF, choices), marked)])
