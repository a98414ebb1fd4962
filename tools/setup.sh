#!/usr/bin/env bash
# Sets up .venv: what pyproject.toml asks for, at the versions of constraints.txt, and the project
# itself. `make` calls it when one of those two files is newer than .venv/.ready.
#
#   tools/setup.sh           sets up .venv, or completes one that is there already
#   tools/setup.sh --which   prints the Python that a new .venv would be made with
#
# $PYTHON names the Python to use; without it the first suitable one of `pythons` is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
ready=$venv/.ready            # last step of a set-up that succeeded
unfinished=$venv/.unfinished  # there while pip works: found at the start, pip was killed half-way
log=$venv/setup.log

# 3.13 last of the three: pydensecrf2 takes a step of its own there, see below.
pythons="python3.12 python3.11 python3.13 python3"

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Says on standard output what is wrong with a Python, or nothing where it is suitable.
unsuitable() {
    command -v "$1" >/dev/null || { echo "not found"; return; }
    # Started rather than looked up: version managers leave stand-ins that only fail.
    "$1" - <<'EOF' 2>/dev/null || echo "does not start"
import os, sys, sysconfig
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    print("is Python %d.%d, needed is 3.11 to 3.13" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
        if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
            print("lacks Python.h, which pydensecrf2 is compiled with (Debian: python3-dev)")
    except ImportError as error:
        print("cannot import %s (Debian: python3-venv)" % error.name)
EOF
}

choose_python() {
    local candidate problem report=()
    for candidate in ${PYTHON:-$pythons}; do
        problem=$(unsuitable "$candidate")
        if [ -z "$problem" ]; then
            echo "$candidate"
            return
        fi
        report+=("  $candidate: $problem")
    done
    die "No suitable Python (3.11 to 3.13, with its headers):" "${report[@]}" \
        "Install one, or name it: make setup PYTHON=/path/to/python3"
}

elapsed() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

# Shows pip's output (standard input) as a few lines; the whole of it goes to the log.
narrate() {
    local line status
    while true; do
        status=0
        IFS= read -r -t 30 line || status=$?
        if [ "$status" -gt 128 ]; then
            echo "  still at it, $(elapsed) so far"
            continue
        fi
        [ "$status" -eq 0 ] || break
        printf '%s\n' "$line" >>"$log"
        case "$line" in
            *Downloading*MB\)* | *Downloading*GB\)*)
                line=${line#*Downloading }
                echo "  downloading ${line##*/}" ;;
            *"Building wheel for"*"finished"* | *"Building editable for"*"finished"*) ;;
            *"Building wheel for"* | *"Building editable for"*)
                line=${line#*for }
                echo "  compiling ${line%% *}" ;;
            "Installing collected packages"*)
                line=${line//[^,]/}
                echo "  unpacking; packages: $((${#line} + 1))" ;;
        esac
    done
}

# Installs with pip at the versions of constraints.txt.
install() {
    "$venv/bin/python" -m pip install --progress-bar off --constraint constraints.txt "$@" 2>&1 |
        narrate
}

# Ends after pip failed with status $1. A pip that gave up by itself leaves nothing half installed,
# so that the next set-up goes on there; one that was killed (status over 128) may well have.
give_up() {
    [ "$1" -gt 128 ] || rm -f "$unfinished"
    tail -n 15 "$log" >&2
    die "" "The set-up failed after $(elapsed). All that pip said: $log" \
        "Once that is put right, the same command again takes it up."
}

if [ "${1:-}" = --which ]; then
    choose_python
    exit
fi

# Not pip's way to end on an interrupt, so that $unfinished stays.
trap 'echo "Set-up interrupted; the next one starts anew." >&2; exit 130' INT TERM

if [ -e "$unfinished" ]; then
    echo "An earlier set-up of $venv was interrupted: starting anew."
    rm -rf "$venv"
fi
if [ -d "$venv" ] && [ -z "$(unsuitable "$venv/bin/python")" ]; then
    echo "Completing $venv ($("$venv/bin/python" --version))."
else
    python=$(choose_python)
    echo "Setting up $venv with $("$python" --version), once: 4 to 10 minutes and 6 GB of disk."
    "$python" -m venv --clear "$venv"
fi
rm -f "$ready"
: >"$log"

if ! "$venv/bin/python" -c "import pydensecrf" 2>/dev/null; then
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || die \
        "No C++ compiler: pydensecrf2 is compiled here (Debian: apt-get install g++)."
fi

touch "$unfinished"
echo "[1/3] torch and torchvision, by far the largest part"
# In one command, as a pair: torchvision runs only with the torch that it was compiled against.
install torch torchvision || give_up $?
echo "[2/3] the other libraries, the tools for development, and wsss itself"
install --editable ".[dev]" || give_up $?
if "$venv/bin/python" -c "import pydensecrf" 2>/dev/null; then
    echo "[3/3] pydensecrf2 (dense CRF): there"
else
    echo "[3/3] pydensecrf2 (dense CRF), compiled with a newer Cython: about 2 minutes"
    # Its own build asks for Cython 0.29, whose C++ does not compile from Python 3.13 on.
    install cython setuptools || give_up $?
    install --no-build-isolation pydensecrf2 ||
        echo "  pydensecrf2 did not build ($log says why); all but the dense CRF works without."
fi
rm -f "$unfinished"
touch "$ready"
echo "Ready after $(elapsed)."
