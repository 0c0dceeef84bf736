"""A real browser, for the tests that look at MLflow's pages."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.servers import needed

# Nothing but the pages themselves: no updates, no sync, and no sandbox, which root does not get.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 30_000  # for one thing to appear on a page: machines that run tests may be busy


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    program = needed("chromium", "/usr/bin/chromium")
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
