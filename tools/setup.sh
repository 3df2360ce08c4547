#!/usr/bin/env bash
# Sets up .venv in the top folder of the checkout: mcf_mm (editable) with OpenMMLab, what the demo
# and the tests need, at the versions of tools/constraints.txt. Needs no compiler. Uses uv when it
# is there (about 30 s), else venv and pip (about 2 min). Does nothing when all is set up already.
#
#   bash tools/setup.sh                     with python3
#   PYTHON=python3.12 bash tools/setup.sh   with another Python, 3.10 or newer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

# Without PYTHON an environment that works keeps its Python, whatever python3 is by now.
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    if .venv/bin/python -c '' 2> /dev/null; then python=.venv/bin/python; fi
fi
command -v "$python" > /dev/null ||
    fail "no Python '$python'; install Python 3.10 or newer, or name one: PYTHON=/path/to/python3"
version=$("$python" -c 'import platform; print(platform.python_version())')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail \
    "mcf_mm needs Python 3.10 or newer, '$python' is $version;" \
    "name another one: PYTHON=python3.12 bash tools/setup.sh"

# Written last, so an interrupted set-up has none. The folder counts because .venv cannot be moved.
stamp=.venv/mcf_mm_setup
wanted=$(cat pyproject.toml tools/constraints.txt <(echo "$version $PWD") |
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [[ -f $stamp && $(< $stamp) == "$wanted" ]]; then
    say "$PWD/.venv is ready (Python $version)"
    exit 0
fi

uv=$(command -v uv || true)
# Only what changed is installed anew after an edit of the requirements; all else starts afresh.
if [[ -f $stamp && $(.venv/bin/python -V 2> /dev/null) == "Python $version" ]] &&
    [[ -n $uv || -x .venv/bin/pip ]]; then
    say "the requirements have changed, bringing $PWD/.venv up to date"
    rm "$stamp"
else
    [[ $python != .venv/bin/python ]] || python=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
    say "making $PWD/.venv with Python $version"
    rm -rf .venv
    if [[ -n $uv ]]; then
        uv venv --quiet --python "$python" .venv
    else
        "$python" -m venv .venv ||
            fail "'$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"
    fi
fi

if [[ -n $uv ]]; then
    say "installing with uv, about 30 s"
    uv pip install --python .venv/bin/python -c tools/constraints.txt -e '.[mm,demo,test]'
else
    say "installing with pip, about 2 min"
    # A terminal gets pip's progress bars, a log only what goes wrong.
    if [[ -t 1 ]]; then quiet=(); else quiet=(--quiet); fi
    .venv/bin/python -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check \
        -c tools/constraints.txt -e '.[mm,demo,test]'
fi

say "checking that everything imports"
.venv/bin/python -c 'import mcf_mm.models, mmdet.models, mmpretrain.models' ||
    fail "installed, but the packages above do not import; see the message before this one"
echo "$wanted" > "$stamp.part"
mv "$stamp.part" "$stamp"
say "done; use it with: source .venv/bin/activate"
