"""What a benchmark ran on, and where its results go."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).parents[2] / "reports" / "benchmarks"
PACKAGES = ("ailora-tools", "torch", "peft", "transformers", "safetensors", "weightwatcher")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_report(name: str, report: dict[str, Any], table: str) -> None:
    """JSON with everything, and a short table with the machine under it; the table is printed too."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    machine = report["machine"]
    versions = ", ".join(f"{package} {found}" for package, found in machine["versions"].items())
    foot = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}; {machine['date']}."
    )
    (REPORTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (REPORTS / f"{name}.md").write_text(f"{table}\n\n{foot}\n")
    print(f"{table}\n\n{foot}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
