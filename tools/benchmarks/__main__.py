"""`tools/bench NAME` runs one benchmark and prints its figures next to the targets."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from rich.console import Console
from rich.table import Table

# What each measures, its default length in seconds, and the figures to reach.
BENCHMARKS: dict[str, tuple[str, float, dict[str, str]]] = {
    "agent_cost": ("memory and CPU of agent and NVML child", 600, {"rss_mib": "<= 80", "cpu_percent": "<= 0.3"}),
    "detect_to_taint": ("kernel line to taint on the API server", 120, {"p50_ms": "<= 100", "p99_ms": "<= 500"}),
    "classify_rate": (
        "kernel-log lines a second, one core",
        10,
        {"ordinary_lines_per_s": ">= 200000", "xid_lines_per_s": ">= 50000"},
    ),
    "budget_race": (
        "1,000 agents at once for 25 places, some killed; then recoveries",
        30,
        {"max_out": "= 25", "max_places": "= 25", "last_place_s": "<= 1"},
    ),
    "burst": ("1,000 nodes faulted at once, the budget open", 60, {"last_taint_s": "<= 10"}),
    "exact_gemm": (
        "exact products: cost of proving, flips caught beside other methods",
        600,
        {"overhead_percent": "<= 5", "caught_percent": "= 100", "false_positives": "= 0"},
    ),
    "idle_writes": ("an hour's rounds of a healthy node", 72, {"writes_per_hour": "= 0"}),
    "soak": ("24 hours of rounds under a driver that lies; --seconds is the limit", 3600, {"rounds": "= 8640"}),
    "test_suite": ("tools/test, and tools/test --fast", 360, {"minutes": "<= 6", "seconds": "<= 60"}),
    "scrape": ("/metrics while NVML hangs", 60, {"p99_ms": "<= 10"}),
    "nvml_hang": ("a hang of 45 s under the running agent", 45, {"scrapes_failed": "= 0", "reported_after_s": "<= 30"}),
}


def main() -> int:
    """0 when measured; whether a figure is reached is for the reader to judge."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--seconds", type=float, help="how long to measure")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, (what, seconds, _) in BENCHMARKS.items():
            print(f"{name:16} {what} ({seconds:g} s)")
        return 0
    what, seconds, wanted = BENCHMARKS[arguments.name]
    module = importlib.import_module(f"benchmarks.{arguments.name}")
    figures, settings = module.run(arguments.seconds or seconds)
    if arguments.json:
        print(json.dumps({"bench": arguments.name, "figures": figures, "settings": settings}))
        return 0
    table = Table("figure", "measured", "to reach", title=f"{arguments.name}: {what}")
    details: Table | None = module.table(figures) if hasattr(module, "table") else None
    for name, value in figures.items():
        if details and name.count("/") > 1:
            continue  # a cell of the benchmark's own table
        table.add_row(name, f"{value:,.3f}".rstrip("0").rstrip("."), wanted.get(name, ""))
    console = Console()
    console.print(table)
    if details:
        console.print(details)
    console.print(", ".join(f"{name}={value}" for name, value in settings.items()), style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
