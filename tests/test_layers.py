"""Imports go down one list only: the contracts of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def test_modules_import_only_those_below_them():
    answer = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
