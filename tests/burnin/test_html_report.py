"""The page of a run: one file, whole, readable, and safe whatever stands in a result."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest
from testing.burnin_results import FAILED, START, result, run

from gpuhealth.burnin.html_report import render
from gpuhealth.burnin.run import Curves
from gpuhealth.model.burnin_run import BurninRun, Miscompare

_VOID = {"meta"}


class _Reader(HTMLParser):
    """Collects the text and the attributes, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closing tags, as of SVG shapes, need no end tag."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def failed() -> BurninRun:
    """Two GPUs, one with a failure whose text would break a page if it were not escaped."""
    miss = Miscompare(what="pattern <0xaa>", index=4096, wrong=3, xor="0400", kind="hot_only", temperature_celsius=71.0)
    bad = result("memory", "GPU-1-b", FAILED, message="3 wrong words", miscompares=(miss,), evidence="<script>&")
    good = result("memory", "GPU-0-a", figures={"memory_copy_gigabytes_per_second": 2801.5, "rounds": 14190.0})
    good = msgspec.structs.replace(good, seconds=50.0)
    return run(good, bad, node="node-<1>", models={"GPU-0-a": "NVIDIA H100"}, notes=("no telemetry",))


def test_it_is_one_whole_file_that_needs_no_other(failed: BurninRun) -> None:
    """All tags are closed, and the page loads no resource and runs no script."""
    text = render(failed, {})
    reader = _Reader(text)
    assert reader.open == []
    assert not reader.attributes & {"src", "href", "onload"}
    assert "script" not in re.findall(r"<(\w+)", text)


def test_it_says_what_failed_where_and_why(failed: BurninRun) -> None:
    """The page shows status as sign and word, the miscompare with position and kind, and the evidence unchanged."""
    shown = " ".join(_Reader(render(failed, {})).text)
    for words in ("node-<1>", "✗ failed", "✓ passed", "3 wrong words", "pattern <0xaa>", "4096", "0400", "hot only"):
        assert words in shown
    for words in ("71", "<script>&", "no telemetry", "NVIDIA H100", "memory copy", "GB/s", "2802", "14190"):
        assert words in shown


def test_curves_have_axes_with_units_and_a_line_for_each_gpu(failed: BurninRun) -> None:
    """Throughput comes before telemetry, and the curve of a failed GPU is thick."""
    line = [(float(second), 50.0 + second) for second in range(60)]
    curves: Curves = {
        "GPU-0-a": {"temperature_celsius": line, "bf16_tflops": line, "pcie_width": line},
        "GPU-1-b": {"temperature_celsius": line},
    }
    text = render(failed, curves)
    assert re.findall(r"<h3>([^<]*\([^<]*\))</h3>", text) == ["bf16 (TFLOPS)", "temperature (°C)"]
    temperature = text.partition("temperature (°C)</h3>")[2]
    assert len(re.findall("<path", temperature)) == 2
    assert len(re.findall('class="bad"', temperature)) == 1
    assert "time in seconds" in temperature
    assert ">memory</text>" in temperature  # the test's name over its time


def test_a_long_curve_keeps_its_peak_and_its_gap() -> None:
    """A long curve is thinned to what a screen shows, but keeps the peak of one sample and a gap of an hour."""
    values = [(float(second), 60.0) for second in range(2000)] + [(6000.0, 60.0), (6001.0, 60.0)]
    values[777] = (777.0, 99.0)
    long_run = run(result(started=START))
    text = render(long_run, {"GPU-0": {"temperature_celsius": values}})
    (path,) = re.findall(r'<path d="(M[^"]{100,})"', text)
    assert path.count("L") < 1000
    assert path.count("M") == 2
    heights = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
    assert min(heights) < max(heights) - 100


def test_a_level_curve_is_drawn() -> None:
    """A constant curve, also one of zeros, has an axis."""
    for value in (0.0, 345.0, 1e-9):
        text = render(run(result()), {"GPU-0": {"sm_clock_megahertz": [(0.0, value), (1.0, value)]}})
        assert "sm clock (MHz)" in text
        assert "nan" not in text
