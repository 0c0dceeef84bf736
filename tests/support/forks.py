"""Commands of lottery in processes that are forked from one that has everything imported: twelve at once, or killed at a
moment of the work and not of the imports.

As a script: a line of JSON in, {"commands": [[...]], "kill_after": seconds or null, "kill_at": [text, times] or null}; a line out, [{"code", "out", "err"}].
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any


class Forks:
    """The parent of such processes, in an environment of its own."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Twelve times as many threads as cores, each waiting for the others by spinning, would take minutes.
            env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} | environment,
        )

    def run(
        self, *commands: tuple[Any, ...], kill_after: float | None = None, kill_at: tuple[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """`kill_at`: when the first of them has said a text so many times on stderr."""
        assert self.process.stdin and self.process.stdout
        words = [[str(word) for word in command] for command in commands]
        request = {"commands": words, "kill_after": kill_after, "kill_at": kill_at}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def serve() -> None:
    from lottery.progress import quiet_libraries

    quiet_libraries()
    importlib.import_module("lottery.jobs.evaluate")  # and with it all that takes seconds
    from lottery.cli.main import main

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            began, children = time.monotonic(), []
            for i, command in enumerate(request["commands"]):
                if (child := os.fork()) == 0:
                    for stream, name in ((1, "out"), (2, "err")):
                        os.dup2(os.open(f"{folder}/{name}-{i}", os.O_WRONLY | os.O_CREAT), stream)
                    code = 1
                    try:
                        main(command)
                        code = 0
                    except SystemExit as e:
                        code = int(e.code or 0)
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(code)
                children.append(child)
            if request["kill_at"] is not None:
                text, times = request["kill_at"]
                said_0 = Path(f"{folder}/err-0")
                while not said_0.exists() or said_0.read_text().count(text) < times:
                    time.sleep(0.05)
                    assert time.monotonic() < began + 300, f"never said {text!r} {times} times"
            if request["kill_after"] is not None:
                time.sleep(request["kill_after"])
            if request["kill_after"] is not None or request["kill_at"] is not None:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = [{n: Path(f"{folder}/{n}-{i}").read_text() for n in ("out", "err")} for i in range(len(children))]
        took = time.monotonic() - began
        found = [{"code": code, "took": took, **texts} for code, texts in zip(codes, said, strict=True)]
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
