"""Homes from a skeleton, and the Secrets of a service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jhlauncher.manager.errors import HomeFailed
from jhlauncher.manager.homes import Userhomes
from jhlauncher.manager.service_secrets import ServiceSecrets, secret_name

UID, GID = (1234, 2345) if os.geteuid() == 0 else (os.getuid(), os.getgid())


@pytest.fixture
def homes(tmp_path: Path) -> Userhomes:
    skel = tmp_path / "skel/hub"
    (skel / "folder").mkdir(parents=True)
    (skel / ".profile").write_text("profile")
    (skel / "folder/file").write_text("file")
    (skel / "folder/file").chmod(0o750)
    return Userhomes(base=str(tmp_path / "homes"), skel=str(tmp_path / "skel"), uid=UID, gid=GID)


def found(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_new_home(homes: Userhomes, tmp_path: Path):
    homes.prepare("hub", "Type/option", 7, "key")
    home = tmp_path / "homes/hub/7"
    assert found(home) == {".profile", "folder", "folder/file"}
    assert (home / "folder/file").stat().st_mode & 0o777 == 0o750
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in [home, *home.rglob("*")]} == {(UID, GID)}
    assert found(tmp_path / "homes/hub") == {"7", *(f"7/{name}" for name in found(home))}, "nothing else is left"


def test_what_is_there_is_left_as_it_is(homes: Userhomes, tmp_path: Path):
    home = tmp_path / "homes/hub/7"
    home.mkdir(parents=True)
    (home / ".profile").write_text("mine")
    homes.prepare("hub", "Type/option", 7, "key")
    assert found(home) == {".profile"}
    assert (home / ".profile").read_text() == "mine"


def test_a_home_that_is_a_link_is_not_followed(homes: Userhomes, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "homes/hub").mkdir(parents=True)
    (tmp_path / "homes/hub/7").symlink_to(outside)
    with pytest.raises(HomeFailed, match="would not be below"):
        homes.prepare("hub", "Type/option", 7, "key")
    (tmp_path / "homes/hub/7").unlink()
    (tmp_path / "homes/hub/7").symlink_to(tmp_path / "homes/hub/nowhere")
    homes.prepare("hub", "Type/option", 7, "key")
    assert found(outside) == set()
    assert not (tmp_path / "homes/hub/nowhere").exists()


def test_links_in_a_skeleton(homes: Userhomes, tmp_path: Path):
    skel, secret = tmp_path / "skel/hub", tmp_path / "secret"
    secret.write_text("secret")
    (skel / "inside").symlink_to("folder/file")
    (skel / "outside").symlink_to(secret)
    (skel / "above").symlink_to("..")
    (skel / "self").symlink_to(".")
    (skel / "loop").symlink_to("loop")
    homes.prepare("hub", "Type/option", 7, "key")
    home = tmp_path / "homes/hub/7"
    assert (home / "inside").read_text() == "file"
    assert not (home / "inside").is_symlink()
    assert not {"outside", "above", "loop"} & found(home)
    assert list((home / "self").iterdir()) == []
    assert secret.stat().st_uid == os.geteuid()


def test_ignored_files(homes: Userhomes, tmp_path: Path):
    homes.skel_ignore_files = [".prof*", "fold*"]
    homes.prepare("hub", "Type/option", 7, "key")
    assert found(tmp_path / "homes/hub/7") == set()


def test_mapped_credentials_and_suffixes(homes: Userhomes, tmp_path: Path):
    homes.credential_mapping = {"second": "hub"}
    homes.service_suffix = {"Type/option": "-special"}
    (tmp_path / "skel/hub-special").mkdir()
    (tmp_path / "skel/hub-special/x").touch()
    homes.prepare("second", "Type/option", 7, "key")
    homes.prepare("second", "Type/other", 7, "key")
    assert found(tmp_path / "homes/hub-special/7") == {"x"}
    assert ".profile" in found(tmp_path / "homes/hub/7")


def test_without_a_skeleton_a_home_is_empty(homes: Userhomes, tmp_path: Path):
    homes.prepare("other", "Type/option", 7, "key")
    assert found(tmp_path / "homes/other") == {"7"}


def test_none_are_made_without_a_folder(homes: Userhomes, tmp_path: Path):
    homes.base = ""
    homes.prepare("hub", "Type/option", 7, "key")
    homes.abandon("hub", "Type/option", "key")
    assert not (tmp_path / "homes").exists()


def test_what_a_killed_process_leaves_is_removed(homes: Userhomes, tmp_path: Path):
    (tmp_path / "homes/hub/.new-key/folder").mkdir(parents=True)
    homes.abandon("hub", "Type/option", "key")
    assert found(tmp_path / "homes/hub") == set()


@pytest.mark.parametrize("credential", ["..", "../x", "/etc", ""])
def test_credentials_that_lead_out(homes: Userhomes, credential: str):
    homes.credential_mapping = {"hub": credential}
    with pytest.raises(HomeFailed, match="would not be below"):
        homes.prepare("hub", "Type/option", 7, "key")


# -- secrets


def test_names_of_secrets():
    assert secret_name("secret-", "a-1", "k8smgr") == "secret-a-1-k8smgr"
    long = "a" * 32 + "-12345678"
    assert secret_name("secret-certs-", long, "a-long-deployment") == f"secret-certs-{long}-a-long-d"
    assert secret_name("secret-", long, "12345678901234-x") == f"secret-{long}-12345678901234"


def test_bug_a_name_that_was_cut_could_be_another_services():
    names = {secret_name("secret-", "a" * 80 + f"-{number}", "k8smgr") for number in range(10)}
    assert len(names) == 10
    assert {len(name) for name in names} == {63}


def test_the_manager_has_the_last_word_and_what_is_skipped_is_not_there():
    secrets = ServiceSecrets(env={"A": 1, "B": None}, env_skip=["C", "X"])
    headers = secrets.variables({"ACCESS-TOKEN": "t", "UUIDCODE": "u", "Other": "o"})
    assert headers == {"access-token": "t", "uuidcode": "u"}
    rendered = secrets.render("s", "c", {"A": "hub", "C": "c", "D": False}, {"X": "x"}, None, DRF_ID="id")
    assert [item["metadata"]["name"] for item in rendered] == ["s"]
    assert rendered[0]["stringData"] == {"A": "1", "B": "", "D": "False", "DRF_ID": "id"}


def test_certificates_can_be_left_out():
    certs = {"keyfile": "k", "certfile": "c", "cafile": "a"}
    assert len(ServiceSecrets().render("s", "c", {}, {}, certs)) == 2
    assert len(ServiceSecrets(ssl_enabled=False).render("s", "c", {}, {}, certs)) == 1
