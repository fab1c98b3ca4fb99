"""``jhlauncher demo``, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_hub


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in an empty home, with its temporary files where they can be counted."""
    home, temp = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temp.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temp), "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "jhlauncher", "demo", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_below(folder: Path) -> list[str]:
    """What runs with this folder in its command line or as its working directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_text() + str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


def assert_nothing_is_left(tmp_path: Path) -> None:
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "home" / "jhlauncher").exists()
    assert processes_below(tmp_path) == []


def test_once(tmp_path: Path):
    demo = start(tmp_path, "--once")
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, output
    assert "with the token answers 200" in output
    assert re.search(r"^http://127\.0\.0\.1:\d+/user/ada/\?token=\w+$", output, re.MULTILINE)
    assert_nothing_is_left(tmp_path)


def test_until_ctrl_c(tmp_path: Path):
    demo = start(tmp_path)
    assert demo.stdout
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    url = re.search(r"^(http://127\.0\.0\.1:\d+/user/ada/\?token=\w+)$", "".join(lines), re.MULTILINE)
    assert url, lines
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(url[1], timeout=30) as page:
        assert "JupyterLab" in page.read().decode()
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does it, to the whole group
    demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert_nothing_is_left(tmp_path)


def test_says_what_is_missing():
    code = "import sys; sys.modules['rich'] = None; from jhlauncher.app import main; main(['demo'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "pip install 'jhlauncher[demo]'" in result.stderr
