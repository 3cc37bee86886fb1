#!/usr/bin/env bash
# The test suite, from nothing:  bash scripts/test.sh [pytest arguments]     (the long tests: bash scripts/test.sh -m slow)
set -euo pipefail
. "$(dirname "$0")/setup.sh" requirements-dev.txt
"$PYTHON" -m pytest "$@"
