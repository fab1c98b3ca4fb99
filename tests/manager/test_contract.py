"""The requests and answers of the K8s Manager, one by one, on a real cluster; and each of its bugs, mended."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kubernetes_asyncio import client as kube

from tests.manager.support import PASSWORDS, TOKEN, UPDATE, Manager, Namespace, basic, new_name, start_body

pytestmark = pytest.mark.real_hub

FIELDS = ["servername", "start_id", "user_options", "jhub_user_id", "jhub_credential", "start_date", "stop_pending"]
NOT_FOUND = (404, {"detail": "Not found."})
FORBIDDEN = (403, {"detail": "You do not have permission to perform this action."})


# -- who may call


def test_health_is_open(manager: Manager):
    assert manager.request("GET", "health/", user=None) == (200, None)
    assert manager.request("GET", "health", user=None) == (200, None)


@pytest.mark.parametrize("path", ["services/", "services/x/", "logs/handler/", "logs/handler/stream/", "logs/logtest/"])
@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (None, "Authentication credentials were not provided."),
        ("Digest x", "Authentication credentials were not provided."),
        (basic("hub", "wrong"), "Invalid username/password."),
        (basic("hub", ""), "Invalid username/password."),
        (basic("nobody", "x"), "Invalid username/password."),
        (basic("absent", ""), "Invalid username/password."),
        ("Basic !!!", "Invalid basic header. Credentials not correctly base64 encoded."),
        ("Basic aHVi", "Invalid basic header. Credentials not correctly base64 encoded."),
        ("Token wrong", "Invalid token."),
    ],
)
def test_strangers(manager: Manager, path: str, header: str | None, detail: str):
    headers = {"Authorization": header} if header else {}
    assert manager.request("GET", path, user=None, **headers) == (401, {"detail": detail})
    assert manager.headers["WWW-Authenticate"] == 'Basic realm="api"'


def test_the_header_authentication_is_none(manager: Manager):
    """The README's word."""
    assert manager.request("GET", user=None, Authentication=basic("hub"))[0] == 401


@pytest.mark.parametrize("scheme", ["Token", "token"])
def test_a_token(manager: Manager, scheme: str):
    assert manager.request("GET", user=None, Authorization=f"{scheme} {TOKEN}")[0] == 200


def test_a_password_with_a_colon(manager: Manager):
    assert ":" in PASSWORDS["other"]
    assert manager.request("GET", user="other") == (200, [])


@pytest.mark.parametrize("user", ["logs", "none"])
def test_services_need_the_group(manager: Manager, user: str):
    for method, path in (("GET", "services/"), ("POST", "services/"), ("DELETE", "services/x/"), ("GET", "services/x")):
        assert manager.request(method, path, body={} if method == "POST" else None, user=user) == FORBIDDEN


@pytest.mark.parametrize("user", ["other", "none"])
def test_logs_need_the_group(manager: Manager, user: str):
    assert manager.request("GET", "logs/handler/", user=user) == FORBIDDEN
    assert manager.request("GET", "logs/logtest/", user=user) == FORBIDDEN


# -- POST


def test_start(manager: Manager, namespace: Namespace):
    name = new_name()
    status, model = manager.start(name, start_id="0a1b2c3d")
    assert status == 201
    assert list(model) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", model.pop("start_date"))
    assert model == {
        "servername": name, "start_id": "0a1b2c3d", "user_options": {"service": "Type/idle"}, "jhub_user_id": 17,
        "jhub_credential": "hub", "stop_pending": False,
    }  # fmt: skip
    id = f"{name}-0a1b2c3d"
    assert namespace.objects(name) == [
        f"ConfigMap conf-{id}", f"Deployment depl-{id}", f"Secret secret-{id}-k8smgr", f"Service svc-{id}",
    ]  # fmt: skip
    assert namespace.get("ConfigMap", f"conf-{id}")["data"] == {"user": "17", "unique": "hub_17", "input": ""}
    assert manager.request("DELETE", f"services/{name}/") == (204, None)
    assert namespace.objects(name) == []
    assert manager.request("DELETE", f"services/{name}/") == NOT_FOUND


def test_the_environment(manager: Manager, namespace: Namespace):
    env = {
        **start_body()["env"],
        "TEXT": "a b\n{c}",
        "NUMBER": 5,
        "TRUE": True,
        "PATH": "/bin",
        "CONFIGURED": "no",
        "LANG": "C",
    }
    name = new_name()
    body = {**start_body(), "env": env}
    status, _ = manager.request("POST", body=body, uuidcode=name, access_token="from the header")
    assert status == 201
    assert namespace.secret(f"secret-{name}-12345678-k8smgr") == {
        "JUPYTERHUB_STATUS_URL": "", "JUPYTERHUB_API_TOKEN": "secret-of-the-server", "JUPYTERHUB_USER_ID": "17",
        "TEXT": "a b\n{c}", "NUMBER": "5", "TRUE": "True", "CONFIGURED": "yes", "access-token": "from the header",
        "SERVERNAME": name, "DRF_ID": f"{name}-12345678",
    }  # fmt: skip
    manager.request("DELETE", f"services/{name}/")
    assert "secret-of-the-server" not in manager.log()


def test_bug_null_in_the_environment_became_a_word(manager: Manager, namespace: Namespace):
    name = new_name()
    assert manager.start(name, start_id="1", env={**start_body()["env"], "NOTHING": None})[0] == 201
    assert namespace.secret(f"secret-{name}-1-k8smgr")["NOTHING"] == ""
    manager.request("DELETE", f"services/{name}/")


def test_certificates(manager: Manager, namespace: Namespace):
    name = new_name()
    certs = {"keyfile": "k", "certfile": "c", "cafile": "ca"}
    assert manager.start(name, start_id="1", certs=certs)[0] == 201
    assert namespace.secret(f"secret-certs-{name}-1-k8smgr") == {
        "JUPYTERHUB_SSL_KEYFILE_DATA": "k", "JUPYTERHUB_SSL_CERTFILE_DATA": "c", "JUPYTERHUB_SSL_CLIENT_CA_DATA": "ca",
    }  # fmt: skip
    manager.request("DELETE", f"services/{name}/")
    assert namespace.objects(name) == []


def without(*path: str) -> Any:
    body = start_body()
    *holders, key = path
    holder = body
    for name in holders:
        holder = holder[name]
    del holder[key]
    return body


@pytest.mark.parametrize(
    "path",
    [("env",), ("env", "JUPYTERHUB_STATUS_URL"), ("env", "JUPYTERHUB_API_TOKEN"), ("env", "JUPYTERHUB_USER_ID"),
     ("user_options",), ("user_options", "service"), ("start_id",)],
)  # fmt: skip
def test_missing_keys(manager: Manager, path: tuple[str, ...]):
    expected = [f"Missing key in input data: {'.'.join(path)}"]
    assert manager.request("POST", body=without(*path), uuidcode=new_name()) == (400, expected)


def test_missing_keys_are_told_in_order(manager: Manager):
    assert manager.request("POST", body={}) == (400, ["Missing key in input data: env"])
    env = {"env": {"JUPYTERHUB_STATUS_URL": "", "JUPYTERHUB_USER_ID": "x"}}
    assert manager.request("POST", body=env)[1] == ["Missing key in input data: env.JUPYTERHUB_API_TOKEN"]
    assert manager.request("POST", body={"user_options": {}, "env": start_body()["env"]})[1] == [
        "Missing key in input data: user_options.service"
    ]


@pytest.mark.parametrize("user_id", ["x", "", None, 1.5, True, [], "1e3", "9" * 30])
def test_a_user_id_that_is_no_number(manager: Manager, user_id: object):
    body = start_body()
    body["env"]["JUPYTERHUB_USER_ID"] = user_id
    expected = {"jhub_user_id": ["A valid integer is required."]}
    assert manager.request("POST", body=body, uuidcode=new_name()) == (400, expected)


@pytest.mark.parametrize("body", [b"{", b"", b"[NaN]", b'["\\ud800"]', b"\xff", b"[" * 100_000])
def test_json(manager: Manager, body: bytes):
    status, answer = manager.request("POST", body=body, uuidcode=new_name())
    assert status == 400
    assert answer["detail"].startswith("JSON parse error")


def test_other_media_types(manager: Manager):
    assert manager.request("POST", body=b"x=1", Content_Type="application/x-www-form-urlencoded") == (
        415, {"detail": 'Unsupported media type "application/x-www-form-urlencoded" in request.'},
    )  # fmt: skip


def test_the_name_of_a_service(manager: Manager):
    assert manager.request("POST", body=start_body(), uuidcode="") == (
        400, {"servername": ["This field may not be blank."]},
    )  # fmt: skip
    status, model = manager.request("POST", body=start_body())
    assert status == 201
    assert re.fullmatch(r"[0-9a-f]{32}", model["servername"])
    assert manager.request("DELETE", f"services/{model['servername']}") == (204, None)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "-a", "a-", "a\u00e4", "<id>", "a" * 201, ".", "Web", "a_b"])
def test_names_that_kubernetes_does_not_know(manager: Manager, name: str):
    status, answer = manager.request("POST", body=start_body(), uuidcode=name.encode().decode("latin-1"))
    assert status == 400
    assert "servername" in answer
    status, answer = manager.request("POST", body=start_body(start_id=name), uuidcode=new_name())
    assert status == 400
    assert "start_id" in answer


ODD = [
    ([], ["Input data must be an object"]),
    ({**start_body(), "env": []}, ["env must be an object"]),
    ({**start_body(), "user_options": "x"}, ["user_options must be an object"]),
    ({**start_body(), "user_options": {"service": 1}}, ["user_options.service must be a text"]),
    ({**start_body(), "env": {**start_body()["env"], "A": {}}}, ["env.A must be a text"]),
    ({**start_body(), "env": {**start_body()["env"], "A B": "x"}}, ["env.A B can't be the name of a variable"]),
    ({**start_body(), "certs": {"keyfile": "k"}}, ["Missing key in input data: certs.certfile"]),
    ({**start_body(), "certs": "x"}, ["certs must be an object"]),
    ({**start_body(), "start_id": ["x"]}, {"start_id": ["Not a valid string."]}),
]


@pytest.mark.parametrize(("body", "answer"), ODD)
def test_odd_bodies(manager: Manager, body: Any, answer: Any):
    assert manager.request("POST", body=body, uuidcode=new_name()) == (400, answer)


@pytest.mark.parametrize("service", ["../other/Type/idle", "Type/../../other/Type/idle", ".."])
def test_a_path_that_leads_out(manager: Manager, service: str):
    status, answer = manager.start(service=service)
    assert (status, answer) == (400, ["user_options.service must not lead out of the descriptions"])


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ("Type/missing", "there is no description of Type/missing for hub"),
        ("/etc", "there is no description of /etc for hub"),
        ("Type/broken", "service.yaml is not valid YAML"),
        ("Type/refused", "Bad_Name"),
        ("Type/unknown-kind", "the cluster has no API v9"),
    ],
)
def test_starts_that_fail_leave_nothing(manager: Manager, namespace: Namespace, service: str, why: str):
    name = new_name()
    status, answer = manager.start(name, service)
    assert (status, answer["error"]) == (500, "Could not start service")
    assert why in answer["detailed_error"]
    assert answer.keys() == {"error", "detailed_error"}
    assert namespace.objects(name) == []
    assert manager.request("GET", f"services/{name}/") == NOT_FOUND


def test_error_texts_can_be_configured(stopped: Manager):
    stopped.configure(error_messages={"services.utils.common.start_service_2": "Ask <b>us</b>"})
    stopped.begin()
    assert stopped.start(service="Type/missing")[1]["error"] == "Ask <b>us</b>"


def test_an_address_that_is_none(manager: Manager):
    """The Hub is just not told of anything."""
    name = new_name()
    assert manager.start(name, env={**start_body()["env"], "JUPYTERHUB_API_URL": "http://[::1"})[0] == 201
    manager.request("DELETE", f"services/{name}/")


# -- again, and anew


def test_bug_a_repeated_start_deleted_the_running_service(manager: Manager, namespace: Namespace):
    name = new_name()
    first, again = (manager.start(name, start_id="1") for _ in range(2))
    assert first == again
    assert first[0] == 201
    assert len(namespace.objects(name)) == 4
    assert manager.request("DELETE", f"services/{name}") == (204, None)


def test_the_same_start_many_times_at_once(manager: Manager, namespace: Namespace):
    name = new_name()
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: manager.start(name, start_id="1"), range(10)))
    assert [status for status, _ in answers] == [201] * 10
    assert len({json.dumps(model) for _, model in answers}) == 1
    assert len(namespace.objects(name)) == 4
    assert len([model for model in manager.request("GET")[1] if model["servername"] == name]) == 1
    manager.request("DELETE", f"services/{name}/")


def test_a_new_start_supersedes(manager: Manager, namespace: Namespace):
    name = new_name()
    manager.start(name, start_id="1")
    assert manager.start(name, start_id="2")[0] == 201
    assert manager.status(name)["start_id"] == "2"
    manager.until(lambda: not namespace.objects(f"{name}-1"))
    assert len(namespace.objects(f"{name}-2")) == 4
    assert manager.request("DELETE", f"services/{name}/") == (204, None)
    assert namespace.objects(name) == []


def test_a_delete_stops_all_starts(manager: Manager, namespace: Namespace):
    name = new_name()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: manager.start(name, start_id=str(number)), range(4)))
    assert manager.request("DELETE", f"services/{name}/") == (204, None)
    assert namespace.objects(name) == []


# -- GET, PATCH, DELETE


def test_a_service_that_runs(manager: Manager):
    name = new_name()
    manager.start(name, "Type/sleeping", start_id="1")
    model = manager.status(name)
    assert list(model) == [*FIELDS, "running"]
    assert model["running"] is True
    listed = [each for each in manager.request("GET", "services")[1] if each["servername"] == name]
    assert [list(each) for each in listed] == [FIELDS]
    assert manager.request("DELETE", f"services/{name}/")[0] == 204


def test_paths_without_a_slash(manager: Manager):
    """The real client deletes without one."""
    name = new_name()
    assert manager.request("POST", "services", body=start_body(), uuidcode=name)[0] == 201
    assert manager.request("GET", f"services/{name}")[0] == 200
    assert manager.request("DELETE", f"services/{name}") == (204, None)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_update(manager: Manager, namespace: Namespace, method: str):
    name = new_name()
    manager.start(name, start_id="1")
    for _ in range(2):
        status, model = manager.request(method, f"services/{name}/", body={})
        assert (status, model["running"]) == (200, True)
    assert namespace.get("ConfigMap", f"conf-{name}-1")["data"]["added"] == "by the update"
    assert f"Service svc-{name}-1-more" in namespace.objects(name)
    assert manager.request("DELETE", f"services/{name}/")[0] == 204
    assert namespace.objects(name) == []


def test_an_update_ends_with_its_service(manager: Manager, namespace: Namespace):
    for _ in range(5):
        name = new_name()
        manager.start(name, start_id="1")
        with ThreadPoolExecutor(3) as threads:
            updates = [threads.submit(manager.request, "PATCH", f"services/{name}/", {}) for _ in range(2)]
            assert manager.request("DELETE", f"services/{name}/")[0] == 204
            assert {update.result()[0] for update in updates} <= {200, 404}
        assert namespace.objects(name) == []


def test_the_same_names_of_two_credentials_have_their_own_updates(manager: Manager, namespace: Namespace):
    manager.describe("Type/updated", (manager.folder / "descriptions/hub/Type/idle/service.yaml").read_text(), "other")
    manager.describe("Type/updated", UPDATE.replace("<id>", "<id>-other"), "other", "update.yaml")
    name = new_name()
    assert manager.start(name, "Type/updated", "other", "1")[0] == 201
    assert manager.start(name, "Type/idle", "hub", "1")[0] == 500
    assert manager.request("PATCH", f"services/{name}/", body={}, user="other")[0] == 200
    assert f"Service svc-{name}-1-other-more" in namespace.objects(name)
    assert manager.request("DELETE", f"services/{name}/", user="other")[0] == 204
    assert namespace.objects(name) == []


def test_update_without_one_changes_nothing(manager: Manager):
    name = new_name()
    manager.start(name, "Type/sleeping")
    assert manager.request("PATCH", f"services/{name}/", body={})[0] == 200
    manager.request("DELETE", f"services/{name}/")


def test_what_is_not_there(manager: Manager):
    for method in ("GET", "DELETE", "PATCH", "PUT"):
        assert manager.request(method, "services/no-such-service/") == NOT_FOUND
    assert manager.request("GET", "nothing/") == NOT_FOUND


def test_methods_that_are_not_there(manager: Manager):
    assert manager.request("DELETE", "services/") == (405, {"detail": 'Method "DELETE" not allowed.'})
    assert manager.request("POST", "logs/logtest/", body={}) == (405, {"detail": 'Method "POST" not allowed.'})


def test_everything_has_the_owners_labels(manager: Manager, namespace: Namespace):
    name = new_name()
    manager.start(name, "Type/sleeping", start_id="1")
    id = f"{name}-1"
    found = {}
    for kind, of in (
        ("Deployment", f"depl-{id}"),
        ("Service", f"svc-{id}"),
        ("ConfigMap", f"conf-{id}"),
        ("Secret", f"secret-{id}-k8smgr"),
    ):
        labels = namespace.get(kind, of)["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "jhlauncher"
        assert labels["jhlauncher.jupyter.org/manager"] == "k8smgr"
        found[kind] = labels["jhlauncher.jupyter.org/service"]
    assert len(set(found.values())) == 1
    template = namespace.get("Deployment", f"depl-{id}")["spec"]["template"]["metadata"]["labels"]
    assert template["jhlauncher.jupyter.org/service"] == found["Secret"]
    assert template["name"] == f"depl-{id}"
    manager.request("DELETE", f"services/{name}/")


def test_the_input(manager: Manager, namespace: Namespace):
    folder = manager.folder / "descriptions/hub/Type/idle/input"
    folder.mkdir()
    (folder / "hello").write_text("world")
    name = new_name()
    assert manager.start(name, start_id="1")[0] == 201
    data = base64.b64decode(namespace.get("ConfigMap", f"conf-{name}-1")["data"]["input"])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.extractfile("input/hello").read() == b"world"
    manager.request("DELETE", f"services/{name}/")


STATEFUL = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: depl-<id>}
spec:
  serviceName: svc-<id>
  replicas: 0
  selector: {matchLabels: {name: depl-<id>}}
  template:
    metadata: {labels: {name: depl-<id>}}
    spec: {containers: [{name: main, image: x}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim-<id>}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1M}}}
"""


def test_bug_only_five_kinds_were_removed(manager: Manager, namespace: Namespace):
    manager.describe("Type/stateful", STATEFUL)
    namespace.do(lambda api: _allow(namespace, api))
    name = new_name()
    status, model = manager.start(name, "Type/stateful")
    assert status == 201, model
    assert namespace.do(lambda api: _others(namespace, api)) == 2
    assert manager.request("DELETE", f"services/{name}/") == (204, None)
    assert namespace.do(lambda api: _others(namespace, api)) == 0


async def _allow(namespace: Namespace, api: Any) -> None:
    """What the example's rights do not have."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": ["create", "get", "patch", "delete"]}
        for group, resource in (("apps", "statefulsets"), ("", "persistentvolumeclaims"))
    ]
    roles = kube.RbacAuthorizationV1Api(api)
    await roles.create_namespaced_role(namespace.name, {"metadata": {"name": "more"}, "rules": rules})
    binding = {
        "metadata": {"name": "more"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": "k8smgr", "namespace": namespace.name}],
    }
    await roles.create_namespaced_role_binding(namespace.name, binding)


async def _others(namespace: Namespace, api: Any) -> int:
    """How many objects there are of these kinds that nobody is removing."""
    sets = await kube.AppsV1Api(api).list_namespaced_stateful_set(namespace.name)
    claims = await kube.CoreV1Api(api).list_namespaced_persistent_volume_claim(namespace.name)
    return sum(item.metadata.deletion_timestamp is None for item in [*sets.items, *claims.items])


# -- two Hubs


def test_two_hubs_know_nothing_of_each_other(manager: Manager, namespace: Namespace):
    name = new_name()
    assert manager.start(name, start_id="1", user="other")[0] == 201
    assert manager.request("GET")[1] == [m for m in manager.request("GET")[1] if m["jhub_credential"] == "hub"]
    for method in ("GET", "DELETE", "PATCH", "PUT"):
        body = {} if method in ("PATCH", "PUT") else None
        assert manager.request(method, f"services/{name}/", body=body) == NOT_FOUND
    assert manager.status(name, user="other")["running"] is True

    # the same name and start: what is the other one's in the cluster stays as it is
    before = namespace.get("Secret", f"secret-{name}-1-k8smgr")
    status, answer = manager.start(name, start_id="1")
    assert (status, answer["error"]) == (500, "Could not start service")
    assert namespace.get("Secret", f"secret-{name}-1-k8smgr") == before
    assert len(namespace.objects(name)) == 4
    assert manager.request("GET", f"services/{name}/") == NOT_FOUND
    assert manager.request("PATCH", f"services/{name}/", body={}, user="other")[0] == 200
    assert len(namespace.objects(name)) == 4, "what it applies is the other one's own, and there is none"
    assert manager.start(name, start_id="2")[0] == 201
    assert manager.request("DELETE", f"services/{name}/")[0] == 204
    assert manager.status(name, user="other")["start_id"] == "1"
    assert manager.request("DELETE", f"services/{name}/", user="other")[0] == 204


def test_many_at_once(manager: Manager, namespace: Namespace):
    names = [new_name() for _ in range(30)]
    with ThreadPoolExecutor(30) as threads:
        assert {status for status, _ in threads.map(manager.start, names)} == {201}
        assert {status for status, _ in threads.map(lambda n: manager.request("DELETE", f"services/{n}"), names)} == {
            204
        }
    assert not [each for each in namespace.objects() if any(name in each for name in names)]
