"""A real MLflow server and a real browser, for the tests that look at its pages."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

# Nothing but the pages themselves: no updates, no sync, and no sandbox, which root does not get.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 30_000  # for one thing to appear on a page: machines that run tests may be busy


def chromium() -> str:
    """The browser's program; where there is none the test is skipped, unless LOTTERY_CI says that it must be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        (pytest.fail if os.environ.get("LOTTERY_CI") else pytest.skip)("needs chromium on the path")
    return found


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str | None = None) -> Iterator[str]:
    """`mlflow server` over a database (a SQLite file in `folder` unless told) and artifacts in `folder`: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store or f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
    )  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    # without the eight processes beside it that judge traces, the server is there, and gone, in a fraction of the time
    alone = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=kept | alone, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while not answers(f"{url}/api/2.0/mlflow/experiments/search?max_results=1"):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@contextlib.contextmanager
def new_page(browser: Browser) -> Iterator[Page]:
    """As somebody sees it who was there before: MLflow opens its assistant's panel at the first visit alone."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    yield context.new_page()
    context.close()


def screenshot(page: Page, folder: Path, name: str) -> None:
    """A picture of what is on the screen, with something on it: not one colour, and not two."""
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        assert image.size == (1600, 1000)
        colours = image.convert("RGB").getcolors(1 << 24) or []
    assert len(colours) > 50 and max(count for count, _ in colours) < 0.95 * 1600 * 1000, name
