"""Descriptions in a folder tree: what is read, replaced and packed, and what is refused."""

from __future__ import annotations

import base64
import io
import random
import stat
import tarfile
import time
from pathlib import Path

import pytest
from traitlets import TraitError

from jhlauncher.manager.descriptions import Descriptions, Wanted
from jhlauncher.manager.errors import BadDescription

SERVICE = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: depl-<id>
  annotations:
    input: "<input>"
    user: <unique_user_id>
    secrets: <secret_name> <secret_certs_name>
    place: <namespace>
    configured: "<a> <b> <c> <d>"
spec:
  replicas: <replicas>
  template:
    spec:
      securityContext: {runAsUser: <user_id>}
      containers: [{name: main}]
"""


def descriptions(folder: Path, text: str = SERVICE, **settings: object) -> Descriptions:
    place = folder / "descriptions/hub/Type/option"
    place.mkdir(parents=True, exist_ok=True)
    (place / "service.yaml").write_text(text)
    settings = {"replace_credential": {"hub": {"replicas": 2}}, **settings}
    return Descriptions(descriptions=str(folder / "descriptions"), base=str(folder / "base"), **settings)


def wanted(service: str = "Type/option", credential: str = "hub") -> Wanted:
    return Wanted(credential, service, "name-1", 7, "secret-1", "certs-1", "here")


def annotations(of: Descriptions, **want: str) -> dict[str, str]:
    return of.render(wanted(**want)).objects[0]["metadata"]["annotations"]


def packed(of: Descriptions, **want: str) -> dict[str, str]:
    """The files in the input of a service."""
    data = base64.b64decode(annotations(of, **want)["input"], validate=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers() if m.isfile()}


def test_all_keywords(tmp_path: Path):
    rendered = descriptions(tmp_path).render(wanted())
    item = rendered.objects[0]
    assert item["metadata"]["name"] == rendered.main.name == "depl-name-1"
    assert item["spec"]["replicas"] == 2
    assert item["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 7
    assert item["metadata"]["annotations"] == {
        "input": "", "user": "hub_7", "secrets": "secret-1 certs-1", "place": "here", "configured": "<a> <b> <c> <d>",
    }  # fmt: skip


def test_stage_and_credential_before_stage_before_credential(tmp_path: Path):
    of = descriptions(
        tmp_path,
        stage="production",
        replace_stage_credential={"production": {"hub": {"a": "both"}}, "staging": {"hub": {"a": "wrong"}}},
        replace_stage={"production": {"a": "stage", "b": "stage"}, "staging": {"b": "wrong", "d": "wrong"}},
        replace_credential={"hub": {"a": "hub", "b": "hub", "c": "hub", "replicas": 1}, "other": {"d": "wrong"}},
    )
    assert annotations(of)["configured"] == "both stage hub <d>"


def test_without_a_stage_only_the_credential_counts(tmp_path: Path):
    of = descriptions(
        tmp_path, replace_stage={"": {"a": "wrong"}}, replace_stage_credential={"": {"hub": {"b": "wrong"}}}
    )
    assert annotations(of)["configured"] == "<a> <b> <c> <d>"


def test_bug_values_that_are_no_texts_raised(tmp_path: Path):
    of = descriptions(tmp_path, replace_credential={"hub": {"a": 1, "b": True, "c": 1.5, "replicas": 1}})
    assert annotations(of)["configured"] == "1 true 1.5 <d>"
    with pytest.raises(TraitError, match="'a' must be a text"):
        Descriptions(replace_credential={"hub": {"a": ["x"]}})


def test_other_keywords_and_indicators(tmp_path: Path):
    text = SERVICE.replace("<id>", "$(ID)").replace("<user_id>", "$(who)")
    of = descriptions(
        tmp_path, text, indicators=["$(", ")"], drfid_keyword="ID", userid_keyword="who",
    )  # fmt: skip
    item = of.render(wanted()).objects[0]
    assert item["metadata"]["name"] == "depl-name-1"
    assert item["metadata"]["annotations"]["place"] == "<namespace>"


def test_a_mapped_credential_has_the_other_ones_descriptions(tmp_path: Path):
    of = descriptions(tmp_path, credential_mapping={"second": "hub"}, replace_credential={"second": {"replicas": 1}})
    assert annotations(of, credential="second")["user"] == "second_7"


def test_input_is_packed_under_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = descriptions(tmp_path, input_dir="stuff")
    folder = tmp_path / "descriptions/hub/Type/option/stuff/deep"
    folder.mkdir(parents=True)
    (folder / "file").write_text("content")
    (folder.parent / "note.swp").write_text("left out")
    of.descriptions_ignore_files = ["*.swp"]
    assert packed(of) == {"input/deep/file": "content"}
    assert "\n" not in annotations(of)["input"]
    before, now = annotations(of), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10)
    assert annotations(of) == before, "the same every time"


def test_files_for_a_stage_or_credential_lose_the_prefix(tmp_path: Path):
    skipped = {"skip_stage": ["production", "staging"], "skip_credential": ["hub", "other"]}
    of = descriptions(tmp_path, stage="production", **skipped)
    folder = tmp_path / "descriptions/hub/Type/option/input"
    folder.mkdir()
    for name in ("production_hub_a", "production_b", "hub_c", "d", "staging_e", "other_f", "production_other_g"):
        (folder / name).write_text(name)
    assert packed(of) == {
        "input/a": "production_hub_a", "input/b": "production_b", "input/c": "hub_c", "input/d": "d",
    }  # fmt: skip


def test_links_inside_are_followed_and_those_that_lead_out_are_left_out(tmp_path: Path):
    """A mounted ConfigMap is nothing but links."""
    of = descriptions(tmp_path)
    folder = tmp_path / "descriptions/hub/Type/option/input"
    (folder / "..data").mkdir(parents=True)
    (folder / "..data/a").write_text("real")
    (folder / "a").symlink_to("..data/a")
    (tmp_path / "outside").write_text("secret")
    (folder / "b").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(".")
    (folder / "c").symlink_to("c")
    found = packed(of)
    assert found["input/a"] == "real"
    assert "secret" not in found.values()


OUTSIDE = ["..", "../hub/Type/option", "Type/../../other/x", "/etc", "Type//option", "Type/option/", "", "."]
UNKNOWN = ["Type/./option", "Type/option\0", "Type"]


@pytest.mark.parametrize("service", OUTSIDE + UNKNOWN)
def test_paths_outside_and_unknown_ones_are_refused(tmp_path: Path, service: str):
    with pytest.raises(BadDescription, match="there is no description"):
        descriptions(tmp_path).render(wanted(service))


def test_a_link_out_of_the_tree_is_refused(tmp_path: Path):
    of = descriptions(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "service.yaml").write_text(SERVICE)
    (tmp_path / "descriptions/hub/Type/link").symlink_to(outside)
    with pytest.raises(BadDescription, match="there is no description"):
        of.render(wanted("Type/link"))


def test_another_credentials_description_is_unknown(tmp_path: Path):
    with pytest.raises(BadDescription, match="for other"):
        descriptions(tmp_path).render(wanted(credential="other"))


def test_what_is_kept_is_the_owners_and_comes_back(tmp_path: Path):
    of = descriptions(tmp_path)
    (tmp_path / "descriptions/hub/Type/option/update.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: svc-<id>}\nspec: {x: '<a>'}\n"
    )
    rendered = of.render(wanted())
    of.keep("key", rendered)
    assert stat.S_IMODE((tmp_path / "base/key.json").stat().st_mode) == 0o600
    assert of.kept_update("key") == rendered.update
    assert rendered.update[0]["metadata"]["name"] == "svc-name-1"
    of.forget("key")
    assert not list((tmp_path / "base").iterdir())
    assert of.kept_update("key") == []


def test_an_input_that_is_too_large(tmp_path: Path):
    of = descriptions(tmp_path)
    folder = tmp_path / "descriptions/hub/Type/option/input"
    folder.mkdir()
    (folder / "a").write_bytes(random.Random(1).randbytes(5_000_000))
    with pytest.raises(BadDescription, match="bytes, packed"):
        of.render(wanted())
