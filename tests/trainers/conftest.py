"""One model, one start and one report for all consumers."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from kit.real_models import first_layers, smollm2
from kit.trainers import Environment

from ailora_tools import initialize

REPORT = "TRAINERS_REPORT"  # the file that takes a line for every test
OUTCOME = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four layers of SmolLM2-135M-Instruct."""
    folder = tmp_path_factory.mktemp("original")
    return first_layers(smollm2(folder / "whole"), folder / "smollm2-4-layers", 4)


@pytest.fixture(scope="session")
def start(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init --rank 8` made of it."""
    return initialize(original, 8, output=tmp_path_factory.mktemp("start") / "start").folder


@dataclass
class Line:
    """What a test found out about one consumer; `numbers` are filled in as they come."""

    consumer: str = ""
    ran: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def about(self, consumer: str, ran: str, environment: Environment, *packages: str) -> None:
        """Who was run, what, and where."""
        self.consumer, self.ran = consumer, ran
        self.versions = {package: environment.version(package) for package in packages}


@pytest.fixture
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """Appended to the report, if one is asked for, with the outcome of the test."""
    found = Line()
    yield found
    if os.environ.get(REPORT):
        outcome = request.node.stash.get(OUTCOME, "failed")
        record = {**asdict(found), "outcome": outcome, "date": datetime.date.today().isoformat()}
        with open(os.environ[REPORT], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        expected = report.skipped and hasattr(report, "wasxfail")
        item.stash[OUTCOME] = f"wrong today: {report.wasxfail}" if expected else report.outcome
    return report
