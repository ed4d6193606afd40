"""A stand-in that huggingface_hub takes for the Hub, in this process."""

from collections.abc import Iterator

import pytest

from tests.stand_in import TOKEN, StandIn, running


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[StandIn]:
    """Empty, and trusted with a token that may write; retries do not wait."""
    with running() as server:
        values = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": tmp_path}
        for name, value in values.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server
    assert not server.unknown
