#!/usr/bin/env bash
# Sets up .venv if needed and runs the whole test suite. Arguments go to pytest, seen from the top
# folder of the checkout:
#
#   bash tools/run_tests.sh
#   bash tools/run_tests.sh tests/pruning -k surgery
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh
# The networks of the tests are small: more threads only get into each other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
exec .venv/bin/python -m pytest "$@"
