"""Says which engines were tested, and keeps docs/engines.md's table what the suite has seen (a pytest plugin)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.hubs import HUBS, missing

PAGE = Path(__file__).parent.parent.parent / "docs/engines.md"
BEGIN, END = "<!-- the suite's table: begin -->", "<!-- end -->"
ENGINES = ["kubernetes", "docker", "swarm", "local"]


class Table:
    """What the tests saw: (field, engine) -> outcome. With xdist, the main process gets all reports."""

    def __init__(self, write: bool) -> None:
        self.write = write
        self.seen: dict[tuple[str, str], str] = {}
        self.tested: dict[str, int] = {}
        self.broken = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and "/engines/" in report.nodeid:
            for name, value in report.user_properties:
                if name == "engine_table":
                    engine, field, outcome = value  # type: ignore[misc]
                    if report.passed:
                        self.seen[field, engine] = outcome
            if report.passed or report.failed:
                engine = next((name for name in ENGINES if name in report.nodeid.lower()), "")
                self.tested[engine] = self.tested.get(engine, 0) + 1
        if report.failed:
            self.broken = True

    @property
    def complete(self) -> bool:
        """All engines were tested, and wholly."""
        return not self.broken and {engine for _, engine in self.seen} == set(ENGINES) and len(self.seen) > 80

    def text(self) -> str:
        fields = list(dict.fromkeys(field for field, _ in self.seen))
        lines = [f"| | {' | '.join(ENGINES)} |", "| --- " * (len(ENGINES) + 1) + "|"]
        return "\n".join(lines + [self._row(field) for field in sorted(fields)])

    def _row(self, field: str) -> str:
        outcomes = [self.seen.get((field, engine), "not applicable") for engine in ENGINES]
        return f"| {field} | {' | '.join(outcomes)} |"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.complete and not hasattr(session.config, "workerinput"):
            before, rest = PAGE.read_text().split(BEGIN)
            _, after = rest.split(END)
            page = f"{before}{BEGIN}\n\n{self.text()}\n\n{END}{after}"
            if self.write:
                PAGE.write_text(page)
            elif page != PAGE.read_text():
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
                self.outdated = True

    outdated = False

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.tested:
            return
        terminalreporter.section("engines")
        for engine in HUBS:
            tested = f"tested ({self.tested[engine]} tests)" if engine in self.tested else "not tested"
            terminalreporter.line(f"{engine}: {missing(engine) or tested}")
        if self.outdated:
            terminalreporter.line("docs/engines.md does not have what was seen; write it with --write-engine-table:")
            terminalreporter.line(self.text())
