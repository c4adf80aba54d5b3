"""Headless Chromium for tests marked `browser`: Debian's, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

REQUIRED = "TPO_LITE_BROWSER"
"""Where this environment variable is `required`, as in CI, a missing Chromium is a failure and not a skip."""


MILLISECONDS = 120_000
"""How long a busy machine may take for one step."""


def need_browser() -> None:
    """Skip the test that runs, or fail it, where Chromium or Playwright is missing."""
    missing = [] if _chromium() else ["Chromium (apt-get install chromium)"]
    missing += [] if find_spec("playwright") else ["playwright (the extra `test`)"]
    if not missing:
        return
    reason = f"opens a report in a browser, and there is no {' and no '.join(missing)}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Opened:
    """A page in Chromium, and everything that it said and asked for."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Console messages of every level, and uncaught errors."""
    requests: list[str] = field(default_factory=list)
    """URLs of all requests, that of the page itself included."""


@contextmanager
def opened(path: Path, width: int = 1200, scheme: Literal["light", "dark"] = "light") -> Iterator[Opened]:
    """Open a file from the disk in a fresh Chromium.

    The page's policy forbids `eval`, and with it Playwright's `wait_for_function`: use `expect` on a locator.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs a user of its own, which a container's root is not; the page is our own file.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=arguments)
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(MILLISECONDS)
        found = Opened(page)
        page.on("console", lambda message: found.console.append(message.text))
        page.on("pageerror", lambda error: found.console.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(path.as_uri())
        yield found
        chromium.close()
