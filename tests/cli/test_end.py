"""A command ends at once: Python does not look through all that was imported for garbage once more."""

import subprocess
import sys


def test_garbage_is_not_looked_for_at_the_end() -> None:
    script = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # runs after everything that is registered later
from lottery.cli.main import main
main(["plan", "--help"])
"""
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert int(found.splitlines()[-1]) > 1000
