"""Runs a script in a fresh process in which the package cannot be imported, as at somebody who only has the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# A finder before all others, because the package may be installed where the tests run. The copies that transformers
# makes of a model's code have longer names (`transformers_modules.….modeling_mtl`) and are found.
BLOCK = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        house = ("train_setup", "train_trainer", "mtl")
        root = name.partition(".")[0]
        if root in house or root.endswith("_mtl"):
            raise ImportError(f"{name} is blocked in this process")


sys.meta_path.insert(0, Blocked())
for name in ("mtl", "modeling_mtl", "configuration_mtl"):
    try:
        __import__(name)
    except ImportError as error:
        assert "is blocked" in str(error)
    else:
        raise AssertionError(f"{name} can be imported")
"""
PRELUDE = """
import json, os, sys


def report(**values):
    print("\\n" + json.dumps(values))  # The library's question for consent leaves a line without its end.


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
"""


def run_fresh(
    script: str, *args: object, env: dict[str, str], cwd: Path, package: bool = False, returncode: int = 0
) -> dict[str, Any]:
    """Runs a script in a new process, without the package, and returns what its last call of `report` was given.

    Args:
        script: Python code; `report(**values)` and `error_of(function, *args)` are at hand.
        *args: Arguments of the script.
        env: Environment of the process; `PYTHONPATH` is taken out of it.
        cwd: Folder to run in, made if need be; it must not hold the package.
        package: Whether the package may be imported, if it is installed or the script makes it be found.
        returncode: The code that the process has to end with.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ("" if package else BLOCK) + PRELUDE + script, *map(str, args)]
    result = subprocess.run(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,  # A library that asks for consent gets no answer, instead of waiting for one.
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == returncode, result.stderr
    lines = result.stdout.splitlines()
    reported: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return reported


def offline_env(home: Path) -> dict[str, str]:
    """Returns the environment of a process without network whose caches are in a folder of its own."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
