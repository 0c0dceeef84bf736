"""Ends a command at SIGTERM as at Ctrl-C, so that its run is closed and no partial file stays."""

import os
import signal
import sys
import threading
from typing import Any

AGAIN_S = 0.05  # seconds


def end_at_signals() -> None:
    """From now on SIGTERM raises SystemExit, and no signal is lost in a destructor.

    Python ignores whatever a destructor raises, also the exception of a signal that comes while it runs. (MLflow asks git
    for a commit, and the destructor of that waits for a process.) The signal is then sent again.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "send_again":  # an earlier command of this process has set it
        return

    def send_again(ignored: Any) -> None:
        number = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(ignored.exc_type)
        if number is None:
            before(ignored)
        else:
            threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = send_again
