"""A signal ends a command, whatever runs when it comes."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

SCRIPT = """
import os, signal, time
from lottery.cli.signals import end_at_signals

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
end_at_signals()
try:
    thing = Destroyed()
    del thing
    time.sleep(10)
finally:
    print("cleaned up", flush=True)
"""


@pytest.mark.parametrize(("name", "codes"), [("SIGTERM", (143,)), ("SIGINT", (130, -2, 1))])
def test_a_signal_that_comes_during_a_destructor(name: str, codes: tuple[int, ...]) -> None:
    """Python ignores what a destructor raises: without care the command would go on as if nothing had come."""
    command = [sys.executable, "-c", SCRIPT.replace("{name}", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=9)
    assert done.returncode in codes and done.stdout == "cleaned up\n"
    assert "Exception ignored" not in done.stderr
