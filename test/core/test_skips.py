"""What `test/conftest.py` makes of skips: where the folder ``shared`` is, only known reasons count."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_known():
    pytest.skip("ray is not installed, as ever")

def test_unknown():
    pytest.skip("nobody knows why")

@pytest.mark.skipif(True, reason="the data folder is absent")
def test_absent():
    pass

@pytest.mark.xfail
def test_expected():
    assert False
"""


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_skip_for_no_known_reason_fails_where_the_data_are(shared: bool, tmp_path: Path) -> None:
    tests = tmp_path / "repository/test"
    tests.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tests)
    (tests / "test_a.py").write_text(TESTS)
    (tests / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    if shared:
        (tmp_path / "shared").mkdir()
    options = ["-p", "no:cacheprovider", "-ra", "--continue-on-collection-errors", f"--rootdir={tests.parent}"]
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    if shared:
        assert "1 failed, 1 skipped, 1 xfailed, 2 errors in" in said, said
        assert "exists, for a reason that test/conftest.py lacks: nobody knows why" in said
        assert "lacks: could not import 'no_such_module'" in said
    else:
        assert "4 skipped, 1 xfailed in" in said, said
