from pathlib import Path

import pytest
from pydantic import SecretStr

from medflow.connections import secrets
from medflow.connections.secrets import reveal
from medflow.errors import ConfigurationError


def test_a_secret_is_where_its_reference_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "from the environment")
    (tmp_path / "there").write_text("from a file\n")

    assert reveal(SecretStr("env:HERE")) == "from the environment"
    assert reveal(SecretStr(f"file:{tmp_path / 'there'}")) == "from a file"
    assert [reveal(SecretStr(plain)) for plain in ("word", "a:b", "env:")] == ["word", "a:b", "env:"]


@pytest.mark.parametrize("reference", ["env:NOT_SET", "file:/not/there", "env:EMPTY"])
def test_a_reference_that_leads_nowhere_is_named(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")

    with pytest.raises(ConfigurationError, match=reference.partition(":")[2]):
        reveal(SecretStr(reference))


class Entry:
    """An entry point as another distribution may bring it."""

    value = "vault:read"

    def __init__(self, lookup):
        self._lookup = lookup

    def load(self):
        return self._lookup


@pytest.fixture
def vault(monkeypatch):
    def read(name):
        if name == "broken":
            raise RuntimeError("SECRET")
        return f"what {name} holds"

    monkeypatch.setattr(secrets, "_installed", lambda: {"vault": Entry(read)})
    secrets._loaded.cache_clear()
    yield
    secrets._loaded.cache_clear()


def test_another_distribution_may_know_where_secrets_lie(vault) -> None:
    assert reveal(SecretStr("vault:pacs")) == "what pacs holds"
    with pytest.raises(ConfigurationError, match=r"vault:broken.*RuntimeError") as caught:
        reveal(SecretStr("vault:broken"))
    assert "SECRET" not in str(caught.value)
