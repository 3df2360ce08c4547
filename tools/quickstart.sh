#!/usr/bin/env bash
# From a fresh machine to the main job: sets up .venv, then trains, prunes and detects handwritten
# digits on the CPU (see tools/demo/main.py). Takes 6 to 14 minutes on two cores, set-up included. Run
# again after an interruption, it goes on where it was.
#
#   bash tools/quickstart.sh
#   bash tools/quickstart.sh --check   # exit status 1 when a limit of the demo is missed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh
exec .venv/bin/python tools/demo/main.py "$@"
