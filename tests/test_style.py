"""The formatter, the linter and the type checker agree with every file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = ["ruff check", "ruff format --check", "ty check"]


@pytest.mark.parametrize("command", CHECKS)
def test_style(command):
    name, *words = command.split()
    beside = Path(sys.executable).with_name(name)  # of this environment, active or not
    tool = str(beside) if beside.exists() else shutil.which(name)
    assert tool, f"{name} is missing; pip install -e '.[dev]'"
    done = subprocess.run([tool, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
