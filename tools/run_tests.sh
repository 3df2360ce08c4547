#!/usr/bin/env bash
# Sets up the environment if needed and runs the whole test suite in it; the end of the output says
# what was skipped and why. Arguments go to pytest, seen from the top folder of the checkout:
#
#   bash tools/run_tests.sh
#   bash tools/run_tests.sh tests/pruning -k surgery
#   bash tools/run_tests.sh -n 4                    in four processes; -n 0 in pytest's own
#   bash tools/run_tests.sh --stack classic [...]   in .venv-classic, see tools/setup.sh --help
#   bash tools/run_tests.sh --stack oldest tests/pruning   with the lowest versions of pyproject.toml
#
# Two processes share the tests, but for -n, -p no:xdist, --pdb, or a single file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=current
case ${1:-} in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' tools/run_tests.sh; exit ;;
    --stack) stack=${2:-}; shift; [[ $# == 0 ]] || shift ;;
esac
bash tools/setup.sh --stack "$stack"
if [[ $stack == current ]]; then venv=.venv; else venv=.venv-$stack; fi

processes=(-n 2 --dist worksteal)
files=0
for argument in "$@"; do
    case $argument in
        -n* | --numprocesses* | no:xdist | --pdb) processes=() ;;
        *.py | *.py::*) files=$((files + 1)) ;;
    esac
done
[[ $files != 1 ]] || processes=()
# The networks of the tests are small: more threads only get into each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Many tests start Python: what it imports is compiled once, not each time.
unset PYTHONDONTWRITEBYTECODE
exec "$venv/bin/python" -m pytest -rs ${processes[@]+"${processes[@]}"} "$@"
