"""A test that needs data from beside the clone is skipped where there is none, and fails where it is required."""

import pytest

from tests.helpers import shared


def test_missing_data_is_a_skip_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "SHARED", tmp_path)
    monkeypatch.delenv(shared.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"real data that is not part of the project .* {tmp_path}"):
        shared.need_shared_data()


def test_missing_data_that_is_required_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "SHARED", tmp_path)
    monkeypatch.setenv(shared.REQUIRED, "required")
    with pytest.raises(pytest.fail.Exception, match="real data that is not part of the project"):
        shared.need_shared_data()


def test_data_that_is_there_is_read(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(shared, "SHARED", tmp_path)
    shared.need_shared_data()
