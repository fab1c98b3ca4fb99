"""What may be asked, and what becomes of it; no system is touched."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets import TraitError

from jhlauncher.errors import InvalidRequest, PolicyDenied
from jhlauncher.models import parse
from jhlauncher.userjobs.errors import MissingKey, NoAccount, SystemUnavailable
from jhlauncher.userjobs.jobs import hosts, parse_jobs
from jhlauncher.userjobs.requests import UserJobRequest, check_keys, submission
from jhlauncher.userjobs.systems import Owner, System, Systems, account_of, parse_time

JOB = {"script": "#!/bin/sh\ntrue\n"}
FORWARD = {"service": "x", "hostname": "cluster", "target_node": "n1", "ports": {"80": 8080}}


def system(**allowed: Any) -> System:
    return System.model_validate(
        {"local": True, "query_account": "view", "allowed": {"partitions": ["batch", "big"], **allowed}}
    )


def asked(**job: Any) -> Any:
    return parse(UserJobRequest, {"service": "x", "hostname": "cluster", "job": {**JOB, **job}}).job


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (90, 90), ("30", 1800), ("2:30", 150), ("1:30:00", 5400), ("2-12", 216_000), ("2-12:30", 217_800),
        ("1-0:0:1", 86_401), ("00:01:00", 60),
    ],
)  # fmt: skip
def test_times(said: Any, seconds: int):
    assert parse_time(said) == seconds


@pytest.mark.parametrize("said", ["", "x", "1:2:3:4", "-5", "1 0", "1-", "1e3", "٣", None, True, 1.5, [], "9" * 30])
def test_no_times(said: Any):
    with pytest.raises(ValueError):
        parse_time(said)


@pytest.mark.parametrize("key", ["service", "ports", "hostname", "target_node"])
def test_missing_keys(key: str):
    with pytest.raises(MissingKey, match=f"^Missing key: {key}$"):
        check_keys({name: value for name, value in FORWARD.items() if name != key})


def test_the_first_missing_key_is_named():
    with pytest.raises(MissingKey, match="service"):
        check_keys({})
    with pytest.raises(MissingKey, match="hostname"):
        check_keys({"service": "x", "job": JOB})


@pytest.mark.parametrize(
    "body",
    [
        {**FORWARD, "ports": {}},
        {**FORWARD, "ports": {"0": 80}},
        {**FORWARD, "ports": {"80": 65536}},
        {**FORWARD, "ports": {"080": 80}},
        {**FORWARD, "ports": {str(port): port for port in range(1, 30)}},
        {**FORWARD, "ports": [80]},
        {**FORWARD, "service": "Big"},
        {**FORWARD, "service": "1st"},
        {**FORWARD, "service": "x" * 64},
        {**FORWARD, "target_node": ""},
        {**FORWARD, "target_node": "-o"},
        {**FORWARD, "job": JOB},
        {**FORWARD, "target_node": None},
        {**FORWARD, "job": None, "ports": None},
        {"service": "x", "hostname": "cluster", "job": {}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "command": ["true"]}},
        {"service": "x", "hostname": "cluster", "job": {"command": []}},
        {"service": "x", "hostname": "cluster", "job": {"command": ["\ud800"]}},
        {"service": "x", "hostname": "cluster", "job": {"script": "true"}},
        {"service": "x", "hostname": "cluster", "job": {"script": "#!/bin/sh\r\n"}},
        {"service": "x", "hostname": "cluster", "job": {"script": "#!/bin/sh\n" + "x" * 70_000}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "environment": {"A": "x" * 40_000}}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "time": 0}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "nodes": "2"}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "working_directory": "relative"}},
        {"service": "x", "hostname": "cluster", "job": {**JOB, "output": "%A"}},
    ],
)
def test_what_is_refused(body: dict[str, Any]):
    with pytest.raises(InvalidRequest):
        parse(UserJobRequest, body)


def test_what_is_not_said_is_as_allowed():
    made = submission(asked(), "x", system(time="2:00:00", projects=["p1", "p2"]), "ada01", "mark")
    assert (made.partition, made.minutes, made.nodes, made.cpus) == ("batch", 120, 1, 1)
    assert (made.memory, made.gpus, made.project, made.name) == (None, 0, "p1", "x")
    assert made.working_directory == "/home/ada01"
    assert made.output == "/home/ada01/slurm-%j.out"


def test_what_is_said_counts():
    made = submission(
        asked(
            partition="big", time="1:01", memory="1G", cpus=2, nodes=3, gpus=1, project="p2", output="/tmp/%j",
            working_directory="/work", command=None,
        ),
        "x", system(memory="2G", cpus=2, nodes=3, gpus=1, projects=["p1", "p2"]), "ada01", "mark",
    )  # fmt: skip
    assert (made.partition, made.minutes, made.memory, made.gpus, made.project) == ("big", 2, 1024, 1, "p2")
    assert (made.working_directory, made.output) == ("/work", "/tmp/%j")
    assert "script" not in made.public()
    assert "environment" not in made.public()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "secret"), ("project", "p9"), ("time", "2-0"), ("nodes", 2), ("cpus", 5), ("memory", "9G"),
        ("gpus", 1),
    ],
)  # fmt: skip
def test_more_than_is_allowed_is_named(field: str, value: Any):
    with pytest.raises(PolicyDenied) as refused:
        submission(asked(**{field: value}), "x", system(cpus=4, memory="8G"), "ada01", "mark")
    assert [each["field"] for each in refused.value.details["fields"]] == [f"job.{field}"]


def test_without_partitions_there_are_no_jobs():
    with pytest.raises(PolicyDenied, match="only forwards"):
        submission(asked(), "x", System.model_validate({"local": True}), "ada01", "mark")


def test_accounts():
    mapped = System.model_validate(
        {"local": True, "accounts": {"ada": "ada01"}, "credential_accounts": {"hub": {"ada": "ada02", "": "tunnel"}}}
    )
    assert account_of(Owner("", "ada"), "x", mapped) == "ada01"
    assert account_of(Owner("hub", "ada"), "x", mapped) == "ada02"
    assert account_of(Owner("hub", ""), "x", mapped) == "tunnel"
    for owner in (Owner("", "Ada"), Owner("", "eve"), Owner("", ""), Owner("other", "ada"), Owner("hub", "ada02")):
        with pytest.raises(NoAccount):
            account_of(owner, "x", mapped)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "needs ssh, local or slurmrestd"),
        ({"local": True, "unknown": 1}, "unknown"),
        ({"local": True, "accounts": {"ada": "root"}}, "root runs no jobs"),
        ({"local": True, "accounts": {"ada": "../x"}}, "accounts.ada"),
        ({"local": True, "accounts": {"ada": "-x"}}, "accounts.ada"),
        ({"local": True, "allowed": {"partitions": ["batch"]}}, "query_account"),
        ({"local": True, "allowed": {"partitions": ["--x"]}}, "partitions"),
        ({"local": True, "bin": "relative"}, "bin"),
        ({"slurmrestd": {"url": "ftp://x"}}, "url"),
        (
            {"ssh": {"address": "x", "known_hosts": "/nowhere", "key": "/nowhere"}},
            "known_hosts: /nowhere can't be read",
        ),
        ({"ssh": {"address": "x", "key": "/nowhere"}}, "known_hosts"),
        ({"ssh": {"address": "-oProxyCommand=x", "known_hosts": "/x", "key": "/x"}}, "address"),
    ],
)
def test_wrong_systems_are_named(value: Any, problem: str):
    with pytest.raises(TraitError, match=problem) as refused:
        Systems(systems={"cluster": value})
    assert "systems.cluster" in str(refused.value)


def test_hosts():
    assert list(hosts("n1")) == ["n1"]
    assert list(hosts("a,n[1-3,07],b[1-2]x[3-4]")) == [
        "a", "n1", "n2", "n3", "n07", "b1x3", "b1x4", "b2x3", "b2x4",
    ]  # fmt: skip
    assert list(hosts("n[009-011]")) == ["n009", "n010", "n011"]
    assert list(hosts("")) == []
    assert len(list(hosts("n[1-99999999]"))) == 10_000


# As Slurm 23.11 (data_parser v0.0.40) writes it, which is not to be had here; the fields are those of its docs.
NEWER = """{"jobs": [{
 "job_id": 7, "job_state": ["FAILED", "COMPLETING"], "state_reason": "NonZeroExitCode", "user_name": "ada01",
 "comment": "jhlauncher:x", "nodes": "n[1-2]", "batch_host": "n1",
 "exit_code": {"status": ["ERROR"], "return_code": {"set": true, "infinite": false, "number": 3},
               "signal": {"id": {"set": false, "infinite": false, "number": 0}, "name": ""}},
 "start_time": {"set": true, "infinite": false, "number": 100},
 "end_time": {"set": true, "infinite": false, "number": 200}
}, {
 "job_id": 8, "job_state": ["PENDING"], "state_reason": "Resources", "user_name": "ada01", "comment": "", "nodes": "",
 "batch_host": "",
 "exit_code": {"status": ["SUCCESS"], "return_code": {"set": true, "infinite": false, "number": 0}},
 "start_time": {"set": true, "infinite": false, "number": 900},
 "end_time": {"set": false, "infinite": false, "number": 0}
}, {
 "job_id": 9, "job_state": ["CANCELLED"], "state_reason": "None", "user_name": "ada01", "comment": "", "nodes": "n1",
 "exit_code": {"status": ["SIGNALED"], "return_code": {"set": false, "infinite": false, "number": 0},
               "signal": {"id": {"set": true, "infinite": false, "number": 15}, "name": "Terminated"}},
 "start_time": {"set": true, "infinite": false, "number": 100},
 "end_time": {"set": true, "infinite": false, "number": 200}
}], "errors": [], "warnings": []}"""


def test_newer_json():
    failed, waiting, cancelled = parse_jobs(NEWER)
    assert (failed.state, failed.exit_code, failed.signal, failed.node) == ("FAILED", 3, None, "n1")
    assert (failed.started, failed.ended, failed.marker) == (100, 200, "jhlauncher:x")
    assert (waiting.state, waiting.exit_code, waiting.node, waiting.started, waiting.reason) == (
        "PENDING", None, None, None, "Resources",
    )  # fmt: skip
    assert (cancelled.exit_code, cancelled.signal, cancelled.reason, cancelled.node) == (None, 15, "", "n1")


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"jobs": 1}', '{"jobs": [{}]}', '{"errors": [{"error": "x"}]}']
)
def test_what_is_no_list_of_jobs(text: str):
    with pytest.raises(SystemUnavailable):
        parse_jobs(text)
