#!/usr/bin/env bash
# Sets up the environment if needed and runs the whole test suite in it; the end of the output says
# what was skipped and why. Arguments go to pytest, seen from the top folder of the checkout:
#
#   bash tools/run_tests.sh
#   bash tools/run_tests.sh tests/pruning -k surgery
#   bash tools/run_tests.sh --stack classic [...]   in .venv-classic, see tools/setup.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stack=current
case ${1:-} in
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' tools/run_tests.sh; exit ;;
    --stack) stack=${2:-}; shift; [[ $# == 0 ]] || shift ;;
esac
bash tools/setup.sh --stack "$stack"
if [[ $stack == current ]]; then venv=.venv; else venv=.venv-$stack; fi
# The networks of the tests are small: more threads only get into each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
exec "$venv/bin/python" -m pytest -rs "$@"
