#!/usr/bin/env bash
# Every check of the project: lint, types, tests. Arguments go to pytest: scripts/test.sh -k mailbox
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ruff check .
mypy
# Plugins that a ROS 2 installation brings along (launch_testing and its kin) are not made for every pytest.
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec python -m pytest "$@"
