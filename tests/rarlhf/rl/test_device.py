"""The tests of on_standin.py, which tell PyTorch of a device that would stay for all later tests."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_on_a_device_that_does_not_mix_with_the_cpu() -> None:
    tests = Path(__file__).with_name("on_standin.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, cwd=tests.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
