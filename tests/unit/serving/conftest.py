"""The embedded model, loaded once, and a server on it."""

from __future__ import annotations

import pytest

from tests.helpers.serving import serving
from tpo_lite.serving.loaded import LoadedModel
from tpo_lite.serving.source import find_source


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory):
    """Converted models are kept here, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "tpo_lite"


@pytest.fixture(scope="package")
def embedded(cache):
    """The policy that comes with the package, asked for thoughts: 16 replies at a time, and 48 may wait."""
    model = LoadedModel(find_source("embedded", "generic"), rows=16, queue=48, longest=200)
    yield model
    model.close()


@pytest.fixture(scope="package")
def url(embedded):
    """A server on it."""
    with serving(embedded) as found:
        yield found
