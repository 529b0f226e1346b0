#!/usr/bin/env bash
# Real footage through the real node, with figures, a video and stills in the end: scripts/demo.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python "$(dirname "${BASH_SOURCE[0]}")/demo.py" "$@"
