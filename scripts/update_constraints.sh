#!/usr/bin/env bash
# Resolve setup.py anew into constraints.txt, for every supported Python at once. Versions stay as they are where they
# can; options go to uv: scripts/update_constraints.sh --upgrade-package torch. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# pip and setuptools are what install.py installs by themselves.
printf 'pip\nsetuptools\n' | uv pip compile setup.py - "$@" --all-extras --universal --python-version 3.10 \
    --no-python-downloads --no-header --no-annotate --quiet \
    --output-file constraints.txt >/dev/null
linux=" and platform_machine == 'x86_64' and sys_platform == 'linux'"
pypy=" and platform_python_implementation != 'PyPy'"
# What holds everywhere need not be said in every line.
sed -i -e "s/$pypy//; s/$linux//; s/ ; python_full_version < '3.13'\$//" \
    -e "s/ and python_full_version < '3.13'//" \
    -e '1i # The tested versions, written by scripts/update_constraints.sh; install.py and CI use exactly these.' \
    constraints.txt
