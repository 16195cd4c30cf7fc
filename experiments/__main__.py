"""List all commands: `python -m experiments`."""

import ast
from pathlib import Path

from experiments.progress import say


def list_commands() -> dict[str, str]:
    """First line of the docstring of each command, by its name."""
    commands = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        source = file.read_text()
        if "\nif __name__ ==" in source and file.stem != "__main__":
            text = ast.get_docstring(ast.parse(source)) or ""
            commands[file.stem] = text.partition("\n")[0]
    return commands


if __name__ == "__main__":
    say("python -m experiments.NAME [--help]\n")
    for name, line in list_commands().items():
        say(f"  {name:<16}{line}")
