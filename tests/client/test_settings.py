"""Where the client finds the launcher and the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from jhlauncher.client.settings import Settings, SettingsMissing, settings

URL = "https://hub.example.org/services/launcher/"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("JHLAUNCHER_URL", "JHLAUNCHER_TOKEN", "JUPYTERHUB_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "jhlauncher/client.toml"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(f'url = "{URL}"\ntoken = "of-the-file"\n')
    return path


def test_from_arguments_then_environment_then_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert settings() == Settings(URL, "of-the-file")
    monkeypatch.setenv("JHLAUNCHER_TOKEN", "of-the-environment")
    assert settings() == Settings(URL, "of-the-environment")
    assert settings(token="given") == Settings(URL, "given")
    monkeypatch.setenv("JHLAUNCHER_URL", "http://elsewhere/launcher")
    assert settings() == Settings("http://elsewhere/launcher/", "of-the-environment")
    assert settings("https://given/x", "given") == Settings("https://given/x/", "given")


def test_a_file_s_token_goes_to_the_file_s_address_only(file: Path):
    assert settings(URL.rstrip("/")).token == "of-the-file"
    with pytest.raises(SettingsMissing, match=r"no token for https://evil\.example"):
        settings("https://evil.example/services/launcher/")


def test_in_a_server_its_own_token_will_do(file: Path, monkeypatch: pytest.MonkeyPatch):
    file.unlink()
    monkeypatch.setenv("JHLAUNCHER_URL", URL)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "of-the-server")
    assert settings() == Settings(URL, "of-the-server")
    assert settings(token="given").token == "given"
    monkeypatch.setenv("JHLAUNCHER_TOKEN", "of-the-environment")
    assert settings().token == "of-the-environment"


def test_a_token_for_the_address_goes_before_the_server_s_own(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JHLAUNCHER_URL", URL)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "of-the-server")
    assert settings().token == "of-the-file"
    file.write_text('url = "https://elsewhere.example/launcher/"\ntoken = "for-elsewhere"\n')
    assert settings() == Settings(URL, "of-the-server")


def test_a_server_s_token_is_sent_nowhere_else(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Not to an address that a file has, or that is given, whatever the environment has."""
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "of-the-server")
    file.write_text(f'url = "{URL}"')
    with pytest.raises(SettingsMissing, match="There is no token for"):
        settings()
    with pytest.raises(SettingsMissing, match="There is no token for"):
        settings(file=file)
    for configured in ("", URL):
        monkeypatch.setenv("JHLAUNCHER_URL", configured)
        for url in ("https://evil.example/services/launcher/", URL):
            with pytest.raises(SettingsMissing, match="There is no token for"):
                settings(url)


def test_a_file_that_others_may_read_is_refused(file: Path):
    file.chmod(0o640)
    with pytest.raises(SettingsMissing, match="chmod 600"):
        settings()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('url = "https://x"\ntokn = "y"', "tokn is not a setting"),
        ("url = 3", "are texts"),
        ("url", "not valid TOML"),
        ('url = "hub.example.org"\ntoken = "x"', "must be https://"),
        ('url = "https://x"\ntoken = "two words"', "characters that no token"),
        ('url = "https://x"', "no token for https://x"),
        ("", "Where is the launcher"),
        ('url = "http://["\ntoken = "x"', "must be https://"),
        ('url = "https://me:secret@hub.example.org/"\ntoken = "x"', "must be https://"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file: Path, content: str, problem: str):
    file.write_text(content)
    with pytest.raises(SettingsMissing, match=problem) as caught:
        settings()
    assert "two words" not in str(caught.value)


def test_a_file_that_is_named_must_be_there(file: Path, tmp_path: Path):
    with pytest.raises(SettingsMissing, match="There is no file"):
        settings(file=tmp_path / "missing.toml")


def test_a_token_does_not_appear_in_what_is_shown(file: Path):
    assert "of-the-file" not in repr(settings())
