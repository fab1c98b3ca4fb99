"""What a comparison has found, as a table in Markdown and as a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

Ratio = Callable[["Run"], float]


@dataclass
class Run:
    """One load, by one client, in one round."""

    launches: int
    seconds: float
    late: list[float]
    """Seconds from the Hub's ``ready`` to the answer, of each launch."""
    hub_cpu: float
    """Seconds."""
    service_cpu: float
    requests: int
    """That the Hub has answered, whoever asked."""


@dataclass
class Results:
    """All figures of all rounds."""

    title: str
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """Load -> client -> rounds."""
    gets: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Status requests per second, by what was asked."""
    get_requests: int = 0
    """Requests to the Hub beyond one for each of ``containers``, and beyond none for each of ``launches``."""
    starts: list[float] = field(default_factory=list)
    """Seconds from the start of the service to its first answer."""
    memory: list[float] = field(default_factory=list)
    """Of the service, in megabytes: idle, and after all of it."""
    idle_cpu: float = 0
    """Per cent of a core."""

    def ratios(self, load: str, client: str, of: Ratio = lambda run: run.seconds) -> list[float]:
        """To the direct client, round by round."""
        runs = self.runs[load]
        return [of(one) / of(best) for one, best in zip(runs[client], runs["direct"], strict=True)]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the least and the most."""
    values = list(values)
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(results: Results, plot: str) -> str:
    """All of it."""
    lines = [
        f"# {results.title}", "",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"JupyterHub {version('jupyterhub')}. Medians, and in brackets the least and the most of the rounds.", "",
        f"![the time of each, as a ratio to direct's]({plot})", "",
    ]  # fmt: skip
    for load, clients in results.runs.items():
        lines += _load(results, load, clients)
    return "\n".join(lines + _rest(results))


def _load(results: Results, load: str, clients: dict[str, list[Run]]) -> list[str]:
    rows = []
    for client, runs in clients.items():
        late = sorted(seconds * 1000 for run in runs for seconds in run.late)
        hub, service = (statistics.median(cpu(run) / run.launches * 1000 for run in runs) for cpu in (_hub, _service))
        rows.append(
            f"| {client} | {spread(run.seconds for run in runs)} | {spread(results.ratios(load, client), 3)} "
            f"| {statistics.median(late):.0f} / {late[min(len(late) - 1, len(late) * 99 // 100)]:.0f} "
            f"| {hub:.0f} / {service:.0f} | {statistics.median(run.requests / run.launches for run in runs):.2f} |"
        )
    head = (
        "| client | seconds | to direct | ready to answer, ms: median / 99 % | CPU ms per launch: Hub / launcher "
        "| Hub requests per launch |"
    )
    return [f"## {load} ({len(next(iter(clients.values())))} rounds)", "", head, "|" + " --- |" * 6, *rows, ""]


def _hub(run: Run) -> float:
    return run.hub_cpu


def _service(run: Run) -> float:
    return run.service_cpu


def _rest(results: Results) -> list[str]:
    rows = [f"| status GETs per second: {name} | {spread(rates, 0)} | |" for name, rates in results.gets.items()]
    for name in ("containers", "launches"):
        ratios = [ours / hubs for ours, hubs in zip(results.gets[name], results.gets["the Hub's"], strict=True)]
        rows.append(f"| {name} to the Hub's | {spread(ratios)} | at least 0.8 |")
    rows.append(f"| Hub requests for who asks | {results.get_requests} | |")
    if results.starts:
        rows.append(f"| start to first answer, s | {spread(results.starts)} | under 1.0 |")
    rows.append(f"| CPU of the service idle | {results.idle_cpu:.2f} % of a core | under 0.5 % |")
    idle, after = results.memory
    rows.append(f"| memory of the service, MB: idle / after all of it | {idle:.0f} / {after:.0f} | at most 90 idle |")
    return ["## The rest", "", "| what | measured | aim |", "| --- | --- | --- |", *rows, ""]


def draw(results: Results, path: Path) -> None:
    """The time of each client as a ratio to direct's, for each load."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    loads = list(results.runs)
    figure, axes = pyplot.subplots(1, len(loads), figsize=(4 * len(loads), 3.5), layout="constrained", squeeze=False)
    for load, axis in zip(loads, axes[0], strict=True):
        clients = list(results.runs[load])
        axis.boxplot([results.ratios(load, client) for client in clients], tick_labels=clients)
        axis.axhline(1, color="grey", linewidth=0.5)
        axis.set_title(load)
        axis.set_ylabel("time / direct's time")
        axis.set_yscale("log")
        for shown in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            shown(StrMethodFormatter("{x:g}"))
        axis.tick_params(axis="x", rotation=30)
    figure.savefig(path, metadata={"Date": None})
