#!/usr/bin/env bash
# Sets up an environment in the top folder of the checkout: mcf_mm (editable) with OpenMMLab, what
# the demo and the tests need, at tested versions. Needs no compiler. Uses uv, which it installs into
# the environment where it is missing, or pip if that fails. Does nothing when all is set up already.
#
#   bash tools/setup.sh                     .venv, with python3
#   PYTHON=python3.12 bash tools/setup.sh   with another Python, 3.10 or newer
#   bash tools/setup.sh --stack classic     .venv-classic, with python3.10 or PYTHON
#   bash tools/setup.sh --stack oldest      .venv-oldest, with python3.10 or PYTHON, needs uv
#   bash tools/setup.sh --stack newest      .venv-newest, with python3 or PYTHON
#
# The current stack has the OpenMMLab packages that are maintained, onedl-mmcv and so on, at the
# versions of tools/constraints.txt. The classic stack has the original ones of 2024, with the torch
# and Python of their time, at the versions of tools/constraints-classic.txt; it is larger (about
# 5 GB), and has an environment of its own because both bring the same import names. The oldest and the newest stack have the lowest and the
# highest versions that pyproject.toml allows; the lowest torch is a download of some 2.7 GB. Delete
# .venv-newest to look for newer ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

upgrade=()
case "$*" in
    '' | '--stack current')
        venv=.venv
        constraints=tools/constraints.txt
        packages=(-e '.[mm,demo,test,search,postgres,huggingface,onnx]')
        default_python=python3
        python_range='3.10 or newer'
        in_range='sys.version_info >= (3, 10)' ;;
    '--stack classic')
        venv=.venv-classic
        constraints=tools/constraints-classic.txt
        # Without huggingface, which needs a newer torch, and onnx, which has been tested with a
        # newer one only, nor search, which has been tested with a newer scipy. OpenMMLab is not an
        # extra here: mcf_mm's mm brings the same import names.
        # torch and mmengine use setuptools without asking for it.
        packages=(-e '.[demo,test]' mmengine mmcv-lite mmdet mmpretrain setuptools)
        default_python=python3.10
        python_range='3.10'
        in_range='sys.version_info[:2] == (3, 10)' ;;
    '--stack oldest')
        venv=.venv-oldest
        constraints=/dev/null
        upgrade=(--resolution lowest-direct)
        packages=(-e '.[mm,test]')
        default_python=python3.10
        python_range='3.10'
        in_range='sys.version_info[:2] == (3, 10)'
        command -v uv > /dev/null || fail "--stack oldest needs uv: pip cannot choose old versions" ;;
    '--stack newest')
        venv=.venv-newest
        constraints=/dev/null
        upgrade=(--upgrade)
        packages=(-e '.[mm,demo,test,search,postgres,huggingface,onnx]')
        default_python=python3
        python_range='3.10 or newer'
        in_range='sys.version_info >= (3, 10)' ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' tools/setup.sh; exit ;;
    *) fail "cannot take '$*'; it is 'bash tools/setup.sh', or with --stack classic, oldest or" \
        "newest, see --help" ;;
esac

# Without PYTHON an environment that works keeps its Python, whatever python3 is by now.
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=$default_python
    if $venv/bin/python -c '' 2> /dev/null; then python=$venv/bin/python; fi
fi
command -v "$python" > /dev/null ||
    fail "no Python '$python'; install Python $python_range, or name one: PYTHON=/path/to/python3"
version=$("$python" -c 'import platform; print(platform.python_version())')
"$python" -c "import sys; sys.exit(not ($in_range))" || fail \
    "$venv needs Python $python_range, '$python' is $version;" \
    "name another one: PYTHON=/path/to/python3 bash tools/setup.sh $*"

# Written last, so an interrupted set-up has none. The folder counts because an environment cannot
# be moved.
stamp=$venv/mcf_mm_setup
wanted=$(cat pyproject.toml $constraints <(echo "$version $PWD ${packages[*]}") |
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [[ -f $stamp && $(< $stamp) == "$wanted" ]]; then
    say "$PWD/$venv is ready (Python $version)"
    exit 0
fi

uv=$(command -v uv || true)
# Only what changed is installed anew after an edit of the requirements; all else starts afresh.
if [[ -f $stamp && $($venv/bin/python -V 2> /dev/null) == "Python $version" ]] &&
    [[ -n $uv || -x $venv/bin/pip ]]; then
    say "the requirements have changed, bringing $PWD/$venv up to date"
    rm "$stamp"
else
    [[ $python != $venv/bin/python ]] || python=$($venv/bin/python -c 'import sys; print(sys._base_executable)')
    say "making $PWD/$venv with Python $version"
    rm -rf $venv
    if [[ -n $uv ]]; then
        "$uv" venv --quiet --python "$python" $venv
    else
        "$python" -m venv $venv ||
            fail "'$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv"
    fi
fi

# It installs in seconds what takes pip minutes.
if [[ -z $uv ]]; then
    if [[ ! -x $venv/bin/uv ]]; then
        $venv/bin/python -m pip install --quiet --disable-pip-version-check uv ||
            say "uv cannot be installed, going on with pip, which takes longer"
    fi
    if [[ -x $venv/bin/uv ]]; then uv=$venv/bin/uv; fi
fi
# A terminal gets progress bars, a log only what goes wrong.
if [[ -t 1 ]]; then quiet=(); else quiet=(--quiet); fi
options=(${quiet[@]+"${quiet[@]}"} ${upgrade[@]+"${upgrade[@]}"} -c $constraints "${packages[@]}")
if [[ -n $uv ]]; then
    say "installing with uv"
    "$uv" pip install --python $venv/bin/python "${options[@]}"
else
    say "installing with pip"
    $venv/bin/python -m pip install --disable-pip-version-check "${options[@]}"
fi

say "checking that everything imports"
# Writes the bytecode of what it imports, which uv does not: else each process would compile it anew,
# for 10 seconds, wherever PYTHONDONTWRITEBYTECODE is set.
PYTHONDONTWRITEBYTECODE= \
    $venv/bin/python -c 'import mcf_mm.models, mmdet.models, mmpretrain.models' ||
    fail "installed, but the packages above do not import; see the message before this one"
echo "$wanted" > "$stamp.part"
mv "$stamp.part" "$stamp"
say "done; use it with: source $venv/bin/activate"
