#!/usr/bin/env bash
# Every check of the project: lint, types, tests. Arguments go to pytest: scripts/test.sh -n 0 -k mailbox
# The tests run in two processes with one thread of PyTorch each; -n 0 runs them in one. All tests of a file run in the
# same process, so that its fixtures are made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ruff check .
mypy &  # beside the first tests
types=$!
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Plugins that a ROS 2 installation brings along (launch_testing and its kin) are not made for every pytest.
status=0
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -p xdist -n 2 --dist loadfile "$@" || status=$?
wait "$types" || { echo 'mypy found the mistakes that it lists above.' >&2; exit 1; }
exit "$status"
