"""Commands of lottery in processes of their own, which are forked from one that has imported everything: several at once,
one that is killed, one that may write no large file. A new Python spends seven seconds on imports; these spend none.

As a script: a request as a line of JSON in, the ends of its commands as a line of JSON out.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300  # for the moment at which the first command is killed


class Forks:
    """The parent of such processes. They have the environment and the working directory of the caller, at the call."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.forks"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def run(
        self,
        *commands: tuple[Any, ...],
        environments: Sequence[Mapping[str, str]] = (),
        typed: str = "",
        largest_file: int | None = None,
        kill_after: float | None = None,
        kill_at: tuple[str, int] | None = None,
        kill_when: str | None = None,
        kill_by: int = signal.SIGKILL,
    ) -> list[dict[str, Any]]:
        """{"code", "out", "err", "took"} of each of the commands, which all begin at once.

        `environments`: what one of them has beside the caller's. `largest_file`: the bytes that a file may have.
        All are killed `kill_after` seconds; or when the first one has said a text so many times on stderr (`kill_at`);
        or when a file is there (`kill_when`, a pattern).
        """
        if self.process is None or self.process.poll() is not None:
            self.process = self.start()
        assert self.process.stdin and self.process.stdout
        more = list(environments) or [{} for _ in commands]
        request = {
            "commands": [[str(word) for word in command] for command in commands],
            "environments": [dict(os.environ) | dict(env) for env in more],
            "folder": str(Path.cwd()),
            "typed": typed,
            "largest_file": largest_file,
            "kill_after": kill_after,
            "kill_at": kill_at,
            "kill_when": kill_when,
            "kill_by": int(kill_by),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        if self.process is not None and self.process.stdin:
            self.process.stdin.close()
            self.process.wait(30)


def serve() -> None:
    from lottery.progress import quiet_libraries

    quiet_libraries()
    warm_up()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            answers.write(json.dumps(fork_all(json.loads(line), Path(folder))) + "\n")
        answers.flush()


def warm_up() -> None:
    """Prunes and registers a small model, so that whatever is imported or computed once a process is here already.

    No text is tokenized: tokenizers' threads do not survive a fork. Those of the kernels are new in each child.
    """
    from lottery.cli.main import main
    from lottery.kernels import parallel
    from tests.support.models import tiny_model
    from tests.support.store import new_store

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(sys.stderr):
        os.environ |= {"MLFLOW_TRACKING_URI": new_store(Path(folder) / "m.db"), "LOTTERY_HOME": f"{folder}/home"}
        model = tiny_model(Path(folder) / "model")
        main(["prune", "--model", str(model), "--measure", "none"], standalone_mode=False)
    os.environ.clear()
    os.environ.update(before)
    parallel.POOL.shutdown()
    parallel.POOL = ThreadPoolExecutor(parallel.THREADS)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()


def fork_all(request: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The children of one request, from their start to their ends; what they print goes through files in the folder."""
    (folder / "in").write_text(request["typed"])
    began, children = time.monotonic(), []
    for i in range(len(request["commands"])):
        if (child := os.fork()) == 0:
            run_child(request, i, folder)
        children.append(child)
    if any(request[name] is not None for name in ("kill_after", "kill_at", "kill_when")):
        await_moment(request, folder, children[0])
        for child in children:
            os.kill(child, request["kill_by"])
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    took = time.monotonic() - began
    said = [{name: (folder / f"{name}-{i}").read_text() for name in ("out", "err")} for i in range(len(children))]
    return [{"code": code, "took": took, **texts} for code, texts in zip(codes, said, strict=True)]


def run_child(request: dict[str, Any], i: int, folder: Path) -> None:
    code = 1
    try:
        os.dup2(os.open(folder / "in", os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{i}", os.O_WRONLY | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(request["environments"][i])
        os.chdir(request["folder"])
        if (most := request["largest_file"]) is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        from lottery.cli.main import main

        main(request["commands"][i])
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def await_moment(request: dict[str, Any], folder: Path, first: int) -> None:
    """Returns at the moment at which the children are to be killed, or when the first of them has ended before it."""
    text, times = request["kill_at"] or ("", 0)
    until = time.monotonic() + (PATIENCE_S if request["kill_after"] is None else request["kill_after"])
    ended = False
    while time.monotonic() < until and not ended:
        ended = os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if text and read_if_there(folder / "err-0").count(text) >= times:
            return
        if request["kill_when"] is not None and list(Path("/").glob(request["kill_when"].lstrip("/"))):
            return
        time.sleep(0.002)
    if text:
        raise AssertionError(f"never said {text!r} {times} times: {read_if_there(folder / 'err-0')}")


def read_if_there(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    serve()
