"""A disk for each person: what is promised to one is there, and what one does hits nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from jhlauncher.engines.disks import SCRIPT, SMALLEST, DiskError, Disks, Kind
from tests.engines.conformance import EngineTests
from tests.engines.hubs import DockerHub, EngineHub, SwarmHub, disks_image, missing
from tests.engines.inside import run

pytestmark = [pytest.mark.asyncio, pytest.mark.real_hub]

MB = 1024**2
POLICY = """
c.Policy.rules = [
    {"name": "disks", "users": ["ann", "ben"], "create_volumes": {"size": "100M"}, **everything},
    {"name": "giants", "users": ["giant"], "create_volumes": {"size": "900T"}, **everything},
    {"name": "dwarfs", "users": ["dwarf"], "create_volumes": {"size": "1M"}, **everything},
    *c.Policy.rules,
]
"""
SETTINGS = """
c.DockerSpawner.disks = {kind!r}
c.DockerSpawner.disks_volume_group = {group!r}
c.DockerSpawner.disks_image = {image!r}
c.DockerSpawner.disks_dir = {folder!r}
"""
HANGING = r"""
FROM {image}
RUN printf '#!/bin/sh\nfor file; do :; done; echo begun > "$file"; sleep 300\n' > /usr/local/sbin/mkfs.ext4 \
 && chmod +x /usr/local/sbin/mkfs.ext4
"""
LACKS_SYS_RESOURCE = not int(Path("/proc/1/status").read_text().partition("CapBnd:")[2].split()[0], 16) >> 24 & 1


class OnDisks(EngineTests):
    """A Hub whose volumes are disks."""

    hub_class: Any
    kind: Kind = "loopback"

    @pytest.fixture(scope="class")
    @classmethod
    def hub(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHub]:
        if missing(cls.engine):
            pytest.skip(missing(cls.engine))
        folder = tmp_path_factory.mktemp("disks")
        hub = cls.hub_class(tmp_path_factory.mktemp(cls.engine))
        hub.disks = Disks(hub.docker, cls.kind, disks_image(hub.docker), str(folder / "disks"), f"jh{hub.id}")
        with (hub.folder / "jhlauncher_config.py").open("a") as config:
            config.write(POLICY)
        with (hub.folder / "jupyterhub_config.py").open("a") as config:
            config.write(SETTINGS.format(**vars(hub.disks)))
        with cls.room(hub):
            try:
                with hub.running():
                    yield hub
                    asyncio.run(cls._end(hub))
            finally:
                for disk in hub.disks.listed():
                    hub.disks.remove(disk.name)

    @staticmethod
    @contextmanager
    def room(hub: Any) -> Iterator[None]:
        """Where the disks are to be."""
        yield

    async def on_disk(self, hub: Any, user: str, name: str = "", **body: Any) -> dict[str, Any]:
        """Launch with a disk at the home's folder ``disk``."""
        vols = [{"pvc": name or hub.volume(user), "mount": f"{hub.home}/disk"}]
        return await self.launch(hub, user, vols=vols, **body)


def on_host(disks: Disks, script: str, *, all_devices: bool = False) -> str:
    """Do something on the Docker host, as its administrator might."""
    client = disks.client
    host = client.create_host_config(
        cap_add=["SYS_ADMIN"],
        cap_drop=[] if all_devices else ["MKNOD"],  # LVM would make what the kernel has not
        device_cgroup_rules=["b *:* rwm", "c 10:* rwm"] if all_devices else ["b 7:* rwm", "c 10:237 rwm"],
        binds=["/dev:/dev", "/run:/host-run", f"{disks.folder}:/disks"],
    )
    container = client.create_container(disks.image, ["sh", "-euc", script], host_config=host)["Id"]
    try:
        client.start(container)
        status = client.wait(container)["StatusCode"]
        said = client.logs(container).decode()
        assert status == 0, said
        return str(said)
    finally:
        client.remove_container(container, force=True)


def inside(hub: Any, user: str, script: str) -> str:
    """What a shell says in the user's container."""
    [container] = hub.docker.containers(filters={"name": rf"^/{hub.id}-{user}(\.launch)?$"})
    command = hub.docker.exec_create(container["Id"], ["sh", "-c", script])
    return str(hub.docker.exec_start(command).decode())


def volumes(hub: Any, *arguments: str) -> tuple[int, Any]:
    """``jhlauncher volumes``: the exit status, and what is told."""
    return operated(hub, "volumes", *arguments)


def operated(hub: Any, *arguments: str) -> tuple[int, Any]:
    """What a command of ``jhlauncher`` says where the Hub runs."""
    done = subprocess.run(
        [sys.executable, "-m", "jhlauncher", *arguments, "--hub-config=jupyterhub_config.py", "--json"],
        cwd=hub.folder, capture_output=True, text=True, timeout=120, env={**os.environ, **hub.environment},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


class TestDocker(OnDisks):
    engine = "docker"
    hub_class = DockerHub

    async def test_a_disk_of_its_own(self, hub: Any):
        """Of the size that the rule says, the user's; full, it hits nobody else; it outlives container and reboot."""
        await asyncio.gather(self.on_disk(hub, "ann"), self.on_disk(hub, "ben"))
        what = inside(hub, "ann", "df -B1 --output=source,size disk | tail -n 1; stat -c %U disk")
        device, size, owner = what.split()
        assert device == f"/run/jhlauncher/disks/{hub.volume('ann')}"
        assert 90 * MB < int(size) <= 100 * MB
        assert owner == "jovyan"
        assert inside(hub, "ann", "ls -A disk") == ""
        assert "noexec" not in inside(hub, "ann", "grep disk /proc/mounts")
        assert "No space left on device" in inside(hub, "ann", "echo mine > disk/note; cat /dev/zero > disk/all")
        assert inside(hub, "ben", "echo also mine > disk/note; cat disk/note; ls disk") == "also mine\nnote\n"
        # all of it is there, and no fstrim gives any of it back
        said = on_host(hub.disks, f"stat -c '%s %b %B' /disks/{hub.volume('ann')}")
        total, blocks, block = map(int, said.split())
        assert (total, blocks * block >= total) == (100 * MB, True)

        await asyncio.gather(hub.stop("ann"), hub.stop("ben"))
        assert not await hub.remains()
        self._reboot(hub)
        await asyncio.gather(self.on_disk(hub, "ann"), self.on_disk(hub, "ben"))
        assert inside(hub, "ann", "cat disk/note") == "mine\n"
        assert inside(hub, "ben", "cat disk/note") == "also mine\n"
        await asyncio.gather(hub.stop("ann"), hub.stop("ben"))

    @staticmethod
    def _reboot(hub: Any) -> None:
        """What it takes away: loop devices, and their names. Those of others' disks, who are at work, stay here."""
        on_host(
            hub.disks,
            """
            for file in /disks/*; do
              losetup -d "$(losetup -n -O NAME -j "$file")"
              [ -z "$(losetup -n -O NAME -j "$file")" ]
              rm "/host-run/jhlauncher/disks/${file#/disks/}"
            done
            """,
        )

    async def test_a_name_that_leads_to_anothers_device(self, hub: Any):
        """As when a link has outlived what it was made for."""
        ann, ben = (f"/host-run/jhlauncher/disks/{hub.volume(user)}" for user in ("ann", "ben"))
        await asyncio.gather(self.on_disk(hub, "ann"), self.on_disk(hub, "ben"))
        inside(hub, "ann", "echo ann > disk/who")
        inside(hub, "ben", "echo ben > disk/who")
        await hub.stop("ann")
        on_host(hub.disks, f"ln -sfn $(readlink {ben}) {ann}")
        await self.on_disk(hub, "ann")
        assert [inside(hub, user, "cat disk/who") for user in ("ann", "ben")] == ["ann\n", "ben\n"]
        await asyncio.gather(hub.stop("ann"), hub.stop("ben"))

    async def test_list_grow_and_remove(self, hub: Any):
        name = hub.volume("maker")
        launched = await self.on_disk(hub, "maker")
        await run(launched, "open('disk/file', 'wb').write(bytes(5_000_000))")
        status, listed = volumes(hub, "list")
        entry = next(each for each in listed if each["name"] == name)
        assert (status, entry["user"], entry["size"]) == (0, "maker", SMALLEST)
        assert 5_000_000 <= entry["used"] < 6_000_000
        assert entry["used_by"] == [name.lstrip("/") for name in await hub.remains_of("maker")]

        status, told = volumes(hub, "remove", "--yes", name)
        assert (status, "in use" in told[0]["done"]) == (1, True), told
        status, told = volumes(hub, "grow", name, "1M")
        assert status == 1
        if LACKS_SYS_RESOURCE:
            assert "CAP_SYS_RESOURCE" in volumes(hub, "grow", name, "64M")[1][0]["done"]
            await hub.stop("maker")
        assert volumes(hub, "grow", name, "64M") == (0, [{"name": name, "done": "grown"}])
        if LACKS_SYS_RESOURCE:
            await self.on_disk(hub, "maker")
        size, kept = inside(hub, "maker", "df -B1 --output=size disk | tail -n 1; stat -c %s disk/file").split()
        assert (int(size) > 50 * MB, kept) == (True, "5000000")
        status, told = volumes(hub, "grow", name, "32M")
        assert (status, "it can grow, not shrink" in told[0]["done"]) == (1, True), told
        status, told = volumes(hub, "grow", name, "900T")
        assert (status, "no room" in told[0]["done"]) == (1, True), told

        await hub.stop("maker")
        assert "--yes" in volumes(hub, "remove", name)[1]
        assert volumes(hub, "remove", "--yes", name) == (0, [{"name": name, "done": "removed"}])
        assert not await hub.has_volume(name)
        assert name not in {disk.name for disk in hub.disks.listed()}
        status, told = volumes(hub, "remove", "--yes", name)
        assert (status, "no such volume" in told[0]["done"]) == (1, True), told

    @pytest.mark.skipif(LACKS_SYS_RESOURCE, reason="this machine has no CAP_SYS_RESOURCE, without which nobody can")
    async def test_grow_while_it_is_written(self, hub: Any):
        await self.on_disk(hub, "makergrows")
        name = hub.volume("makergrows")
        before = inside(hub, "makergrows", "head -c 4000000 /dev/urandom > disk/file; sha256sum disk/file")
        (status, _), _ = await asyncio.gather(
            asyncio.to_thread(volumes, hub, "grow", name, "64M"),
            asyncio.to_thread(inside, hub, "makergrows", "for i in $(seq 300); do cp disk/file disk/copy; done"),
        )
        assert status == 0
        assert inside(hub, "makergrows", "sha256sum disk/file") == before
        await hub.stop("makergrows")

    @pytest.mark.parametrize(("user", "why"), [("giant", "the host has no room for it"), ("dwarf", "smallest size")])
    async def test_what_cant_be_made(self, hub: Any, user: str, why: str):
        error = await self.refusal(hub, user, vols=[{"pvc": hub.volume(user), "mount": f"{hub.home}/disk"}])
        assert (error["reason"], why in error["error"]) == ("volume_failed", True), error
        assert not await hub.has_volume(hub.volume(user))
        assert hub.volume(user) not in on_host(hub.disks, "ls -AR /disks")

    async def test_a_helper_that_is_killed(self, hub: Any):
        """In the middle of mkfs, or since it takes too long: the next launch makes the disk properly."""
        image = f"{hub.disks.image}-hanging"
        build_hanging(hub, image)
        name = hub.volume("makerkilled")
        slow = Disks(hub.docker, "loopback", image, hub.disks.folder, "")
        said: list[str] = []
        helper = threading.Thread(target=lambda: said.append(failure_of(slow.create, name, SMALLEST)))
        helper.start()
        async with asyncio.timeout(30):
            while "begun" not in on_host(hub.disks, f"cat /disks/.new/{name} 2>/dev/null | head -c 5 || :"):
                await asyncio.sleep(0.1)
        [container] = hub.docker.containers(filters={"ancestor": image})
        hub.docker.kill(container["Id"])
        helper.join(30)
        assert "exit status 137" in said[0]
        slow = Disks(hub.docker, "loopback", image, hub.disks.folder, "", timeout=2)
        assert "more than 2 seconds" in failure_of(slow.create, name, SMALLEST)
        assert not hub.docker.containers(all=True, filters={"ancestor": image})
        assert name in on_host(hub.disks, "ls -A /disks/.new")

        await self.on_disk(hub, "makerkilled")
        assert inside(hub, "makerkilled", "echo fine > disk/note; cat disk/note") == "fine\n"
        assert name not in on_host(hub.disks, "ls -A /disks/.new")
        await hub.stop("makerkilled")

    async def test_many_at_once(self, hub: Any):
        users = [f"maker{number}" for number in range(10)]
        await asyncio.gather(*(self.on_disk(hub, user) for user in users))
        devices = {inside(hub, user, "stat -c %d disk; echo mine > disk/mine").strip() for user in users}
        assert len(devices) == len(users)
        assert {disk.size for disk in hub.disks.listed() if disk.name in map(hub.volume, users)} == {SMALLEST}
        await asyncio.gather(*map(hub.stop, users))

    async def test_names_and_what_was_there_before(self, hub: Any):
        """Whatever a volume may be called; a disk that Docker has forgotten; a volume that is no disk."""
        odd, long = hub.volume("Od.d_N--1.new"), hub.volume("l" * (253 - len(hub.volume(""))))
        plain = hub.volume("plain")
        hub.docker.create_volume(plain)
        hub.disks.create(odd, 20 * MB)
        names = {"odd": odd, "long": long, "plain": plain}
        vols = [{"pvc": name, "mount": f"{hub.home}/{key}"} for key, name in names.items()]
        await self.launch(hub, "makerodd", vols=vols)
        kinds = inside(hub, "makerodd", "for i in odd long plain; do stat -f -c '%T %b' $i; echo x > $i/x; done")
        (first, odd_blocks), (second, long_blocks), _ = (line.split() for line in kinds.splitlines())
        assert first == second == "ext2/ext3"
        assert int(odd_blocks) > int(long_blocks)  # it was taken as it was
        assert f"{hub.home}/plain ext4" not in inside(hub, "makerodd", "grep /run/jhlauncher /proc/mounts")
        await hub.stop("makerodd")
        status, _ = volumes(hub, "remove", "--yes", odd, long)
        assert status == 0

    async def test_a_lost_helper_that_others_remove(self, hub: Any):
        assert isinstance(replace(hub.disks, client=OthersRemove(hub.docker)).listed(), list)

    async def test_no_image(self, hub: Any):
        _, findings = operated(hub, "check")
        assert {each["check"]: each["status"] for each in findings}["disks"] == "ok"
        disks = Disks(hub.docker, "loopback", "no-such-image:1", hub.disks.folder, "")
        assert "docker build -f etc/docker/Dockerfile --target disks -t no-such-image:1 ." in failure_of(disks.listed)
        assert "disks_volume_group" in failure_of(Disks(hub.docker, "lvm", hub.disks.image, "", "").listed)


class OthersRemove:
    """A Docker Engine that is removing a lost helper for another Hub: it says 409 to whoever wants that, too."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def containers(self, **_filters: Any) -> list[dict[str, Any]]:
        return [{"Id": "lost", "Created": 0}]

    def remove_container(self, container: str, **options: Any) -> None:
        if container == "lost":
            raise docker.errors.APIError("removal of container lost is already in progress")
        self.client.remove_container(container, **options)


LVM = r"""
truncate -s 200M /pv
pv=$(losetup --find --show /pv)
trap 'losetup -d "$pv"' EXIT
mkdir -p /names /etc/lvm
# without the kernel's part, as there is none: what would be in the volumes is left out
echo "global { activation=0 } devices { filter=[\"a|$pv|\",\"r|.*|\"] }" > /etc/lvm/lvm.conf
for command in mkfs.ext4 debugfs e2fsck resize2fs; do ln -s /bin/true /usr/local/sbin/$command; done
exec 2>&1
pvcreate -qq "$pv" && vgcreate -qq people "$pv" && lvcreate -qq -L 16M -n foreign people
disks() { echo "> $*"; sh -euc "$script" disks lvm people "$@" && echo done || :; }
disks create A.b_c-D--1 20971520
disks create A.b_c-D--1 41943040
lvcreate -qq --addtag jhlauncher -L 16M -n cut_ people # as a helper leaves it that is killed
disks create cut 16777216
disks create foreign 16777216
disks create big 99999997952
disks grow_unused A.b_c-D--1 20971519
disks attach nobody
disks remove foreign
lvs --noheadings --units b -o lv_name,lv_size,tags people
"""
"""What of LVM can be seen without a device mapper: that its commands are understood, and keep others' volumes."""


LVM_SAYS = """
> create A.b_c-D--1 20971520
done
> create A.b_c-D--1 41943040
done
> create cut 16777216
done
> create foreign 16777216
Logical Volume "foreign" already exists in volume group "people"
> create big 99999997952
Volume group "people" has insufficient free space (36 extents): 23842 required.
> grow_unused A.b_c-D--1 20971519
the disk A.b_c-D--1 has 20971520 bytes: it can grow, not shrink
> attach nobody
there is no disk nobody on this host
> remove foreign
done
A.b_c-D--1 20971520B jhlauncher
cut        16777216B jhlauncher
foreign    16777216B
"""


async def test_lvms_volumes():
    if missing("docker"):
        pytest.skip(missing("docker"))
    client = docker.APIClient(version="auto")
    disks = Disks(client, "lvm", disks_image(client), "/unused", "people")
    said = on_host(replace(disks, folder="/tmp/jhlauncher-unused"), f"script=$(cat <<'END'\n{SCRIPT}\nEND\n)\n{LVM}")
    lines = [line.strip() for line in said.splitlines() if "WARNING" not in line]
    assert "\n".join(lines) == LVM_SAYS.strip()


def build_hanging(hub: Any, image: str) -> None:
    from io import BytesIO

    from tests.engines.hubs import build

    build(hub.docker, image, fileobj=BytesIO(HANGING.format(image=hub.disks.image).encode()))


def failure_of(work: Any, *arguments: Any) -> str:
    with pytest.raises(DiskError) as raised:
        work(*arguments)
    return str(raised.value)


@pytest.mark.skipif("device-mapper" not in Path("/proc/misc").read_text(), reason="this kernel has no device mapper")
class TestLvm(OnDisks):
    engine = "docker"
    hub_class = DockerHub
    kind = "lvm"

    @staticmethod
    @contextmanager
    def room(hub: Any) -> Iterator[None]:
        """A volume group in an image file."""
        lvm = "--config 'activation{udev_sync=0 udev_rules=0}'"
        pv = "$(losetup -n -O NAME -j /disks/pv)"
        new = f"truncate -s 300M /disks/pv; losetup --find /disks/pv; vgcreate {lvm} {hub.disks.group} {pv}"
        on_host(hub.disks, new, all_devices=True)
        yield
        on_host(hub.disks, f"vgremove {lvm} -f {hub.disks.group}; losetup -d {pv}; rm /disks/pv", all_devices=True)

    async def test_a_disk_of_its_own(self, hub: Any):
        name = hub.volume("ann")
        await self.on_disk(hub, "ann")
        what = inside(hub, "ann", "df -B1 --output=source,size disk | tail -n 1; stat -c %U disk")
        _, size, owner = what.split()
        assert (90 * MB < int(size) <= 100 * MB, owner) == (True, "jovyan")
        assert "No space left on device" in inside(hub, "ann", "echo mine > disk/note; cat /dev/zero > disk/all")
        await hub.stop("ann")
        on_host(hub.disks, f"lvchange -an {hub.disks.group}/{name}", all_devices=True)  # as a reboot leaves it
        assert volumes(hub, "grow", name, "120M") == (0, [{"name": name, "done": "grown"}])
        await self.on_disk(hub, "ann")
        assert inside(hub, "ann", "cat disk/note") == "mine\n"
        await hub.stop("ann")
        assert [disk.name for disk in hub.disks.listed()] == [name]
        error = await self.refusal(hub, "giant", vols=[{"pvc": hub.volume("giant"), "mount": f"{hub.home}/disk"}])
        assert "insufficient free space" in error["error"]
        assert volumes(hub, "remove", "--yes", name) == (0, [{"name": name, "done": "removed"}])
        assert not hub.disks.listed()


class TestSwarm(OnDisks):
    engine = "swarm"
    hub_class = SwarmHub

    async def test_a_disk_is_on_the_managers_node(self, hub: Any):
        for _ in range(2):
            launched = await self.on_disk(hub, "ann")
            code = "import os; s = os.statvfs('disk'); n = open('disk/n', 'a')"
            code += "; print(s.f_blocks * s.f_frsize >> 20, n.tell()); n.write('x'); n.close()"
            size, before = (await run(launched, code)).split()
            assert 90 < int(size) <= 100
            [service] = hub.docker.services(filters={"name": f"{hub.id}-ann"})
            node = hub.docker.info()["Swarm"]["NodeID"]
            assert f"node.id=={node}" in service["Spec"]["TaskTemplate"]["Placement"]["Constraints"]
            await hub.stop("ann")
        assert before == "1"
