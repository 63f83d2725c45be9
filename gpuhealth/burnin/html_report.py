"""Renders a run as one self-contained HTML page: results, failures, figures, and curves over time in SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from gpuhealth.burnin.figures import format_value, is_pair_figure, name_and_unit
from gpuhealth.burnin.run import Curves
from gpuhealth.model.burnin_run import BurninRun, Miscompare, TestResult, TestStatus

Points = Sequence[tuple[float, float]]

_SIGNS = {TestStatus.PASSED: "✓", TestStatus.FAILED: "✗", TestStatus.SKIPPED: "-", TestStatus.STOPPED: "■"}
_TELEMETRY = (
    "temperature_celsius",
    "memory_temperature_celsius",
    "power_watts",
    "sm_clock_megahertz",
    "memory_clock_megahertz",
)
_NOT_DRAWN = ("temperature_margin_celsius", "utilization_percent")  # nor counts, which have no unit
_COLOURS = 8  # of Okabe and Ito, for colour-blind readers; beyond eight GPUs they repeat with dashes
_WIDTH, _HEIGHT = 640.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 10.0, 24.0, 38.0
_MAX_POINTS = 400  # of a curve
_GAP_SECONDS = 10.0  # a curve is interrupted where it has no value for so long

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6570; --line: #d5dae0; --paper: #fff; --band: #f2f4f7;
  --good: #00664b; --bad: #b3261e; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #8a6d00;
  --c5: #56b4e9; --c6: #000; --c7: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --dim: #a3abb5; --line: #3a414a; --paper: #15181c;
  --band: #1e2329; --good: #4cc9a0; --bad: #ff8a80; --c0: #4aa8e0; --c1: #ff8a3d; --c2: #2fc99b; --c3: #e6a3c8;
  --c4: #d9bd3a; --c5: #9ad6f7; --c6: #fff; --c7: #ffb940; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; } h3 { font-size: 15px; margin: 0; }
p { margin: 4px 0; } .dim { color: var(--dim); } .passed { color: var(--good); } .failed { color: var(--bad); }
.skipped, .stopped { color: var(--dim); } .passed, .failed { font-weight: 600; }
.verdict { display: inline-block; padding: 2px 12px; border: 2px solid currentColor; border-radius: 6px;
  margin-left: 12px; font-size: 18px; vertical-align: 2px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: 4px 16px 4px 0; text-align: left; white-space: nowrap; }
th { color: var(--dim); font-weight: normal; } tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.text { white-space: normal; }
section.failure { border-left: 4px solid var(--bad); padding: 4px 0 4px 16px; margin: 16px 0; }
pre { background: var(--band); padding: 8px 12px; overflow-x: auto; font-size: 13px; line-height: 1.4; }
code { font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 24px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--dim); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .band { fill: var(--band); } svg path { fill: none; stroke-width: 1.8;
  stroke-linejoin: round; } svg path.bad { stroke-width: 3.5; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 8px 0 16px; } .legend svg { width: 28px; height: 12px;
  display: inline-block; vertical-align: middle; margin-right: 6px; }
"""


def render(run: BurninRun, curves: Curves) -> str:
    """The HTML text of the page."""
    title = f"Burn-in of {run.node}, {run.started:%Y-%m-%d %H:%M} UTC"
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            *_header(run),
            *_results(run),
            *_failures(run),
            *_figures(run),
            *_charts(run, curves),
            "</body></html>\n",
        ]
    )


def _gpus(run: BurninRun) -> list[str]:
    return list(dict.fromkeys(result.gpu for result in run.results))


def _header(run: BurninRun) -> Iterator[str]:
    duration = (run.ended - run.started).total_seconds()
    yield f"<h1>{escape(run.node)} {_status(run.status, ' verdict')}</h1>"
    yield (
        f'<p class="dim">Burn-in {escape(run.level)} ({escape(run.reason)}), {run.started:%Y-%m-%d %H:%M:%S} UTC,'
        f" {duration:.0f} s</p>"
    )
    software = ", ".join(f"{name} {version}" for name, version in sorted(run.software.items()))
    yield f'<p class="dim">{escape(software)}</p>' if software else ""
    for note in run.notes:
        yield f"<p>Note: {escape(note)}</p>"


def _status(status: TestStatus, css_class: str = "") -> str:
    return f'<span class="{status}{css_class}">{_SIGNS[status]} {status}</span>'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of headings and cells, both of which are HTML."""
    yield f'<div class="wide"><table><tr>{"".join(f"<th>{heading}</th>" for heading in headings)}</tr>'
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</table></div>"


def _results(run: BurninRun) -> Iterator[str]:
    tests = list(dict.fromkeys(result.test for result in run.results))
    found = {(result.gpu, result.test): result for result in run.results}
    rows = []
    for gpu in _gpus(run):
        row = [f"<code>{escape(gpu)}</code>", escape(run.models.get(gpu, ""))]
        for test in tests:
            result = found.get((gpu, test))
            row.append(f'<span title="{escape(result.message)}">{_status(result.status)}</span>' if result else "")
        rows.append(row)
    yield "<h2>Results</h2>"
    yield from _table(["GPU", "model", *map(escape, tests)], rows)


def _failures(run: BurninRun) -> Iterator[str]:
    failed = [result for result in run.results if result.status is TestStatus.FAILED]
    if failed:
        yield "<h2>Failures</h2>"
    for result in failed:
        yield (
            f'<section class="failure"><h3>{escape(result.test)} on <code>{escape(result.gpu)}</code></h3>'
            f"<p>{escape(result.message)}</p>"
        )
        if result.miscompares:
            headings = ("what", "first at", "wrong", "differing bits", "got", "expected", "kind", "repeats", "°C")
            yield from _table(headings, [_miscompare(miss) for miss in result.miscompares])
        yield f"<pre>{escape(result.evidence.strip())}</pre>" if result.evidence.strip() else ""
        yield "</section>"


def _miscompare(miss: Miscompare) -> list[str]:
    celsius = "" if miss.temperature_celsius is None else f"{miss.temperature_celsius:.0f}"
    position = f"{miss.unit} {miss.index}"
    values = (position, str(miss.wrong), miss.xor, miss.got, miss.expected, miss.kind.replace("_", " "))
    return [escape(value) for value in (miss.what, *values, miss.repeats, celsius)]


def _figures(run: BurninRun) -> Iterator[str]:
    """All figures, one column per GPU; those of single pairs of GPUs are only in the JSON."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for result in run.results:
        for figure, value in result.figures.items():
            if not is_pair_figure(figure):
                values.setdefault((result.test, figure), {})[result.gpu] = value
    if not values:
        return
    yield "<h2>Figures</h2>"
    gpus = _gpus(run)
    rows = []
    for (test, figure), by_gpu in values.items():
        name, unit = name_and_unit(figure)
        cells = [f'<span class="number">{format_value(by_gpu[gpu])}</span>' if gpu in by_gpu else "" for gpu in gpus]
        rows.append([escape(test), escape(name), escape(unit), *cells])
    yield from _table(["test", "figure", "unit", *(f"<code>{escape(_short(gpu))}</code>" for gpu in gpus)], rows)


def _short(gpu: str) -> str:
    return "-".join(gpu.split("-")[:2])


# --- curves -----------------------------------------------------------------------------------------------------------


def _charts(run: BurninRun, curves: Curves) -> Iterator[str]:
    gpus = [gpu for gpu in _gpus(run) if curves.get(gpu)]
    drawn = (name for gpu in gpus for name in curves[gpu] if name_and_unit(name)[1] and name not in _NOT_DRAWN)
    known = list(dict.fromkeys(drawn))
    names = [name for name in known if name not in _TELEMETRY] + [name for name in _TELEMETRY if name in known]
    if not names:
        return
    yield '<h2>Over time</h2><div class="legend">'
    failed = {result.gpu for result in run.results if result.status is TestStatus.FAILED}
    strokes = [_stroke(number, gpu in failed) for number, gpu in enumerate(gpus)]
    for gpu, stroke in zip(gpus, strokes, strict=True):
        sign = f" {_SIGNS[TestStatus.FAILED]}" if gpu in failed else ""
        yield f'<span><svg viewBox="0 0 28 12"><path d="M0 6H28" {stroke}/></svg>{escape(_short(gpu))}{sign}</span>'
    yield '</div><div class="charts">'
    for name in names:
        yield _chart(
            run, name, [(stroke, curves[gpu].get(name, [])) for stroke, gpu in zip(strokes, gpus, strict=True)]
        )
    yield "</div>"


def _stroke(number: int, failed: bool) -> str:
    dashes = f' stroke-dasharray="{2 + 4 * (number // _COLOURS)} 3"' if number >= _COLOURS else ""
    return f'style="stroke: var(--c{number % _COLOURS})"{dashes}' + (' class="bad"' if failed else "")


def _chart(run: BurninRun, name: str, lines: Sequence[tuple[str, Points]]) -> str:
    """One quantity of all GPUs over the time of the run, with the tests as bands in the background."""
    duration = max((run.ended - run.started).total_seconds(), 1.0)
    values = [value for _, points in lines for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(seconds: float) -> float:
        return _LEFT + min(max(seconds / duration, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    title, unit = name_and_unit(name)
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)} in {escape(unit)}">']
    for number, (test, begins, ends) in enumerate(_phases(run)):
        left, width = x(begins), x(ends) - x(begins)
        if number % 2 == 0:
            parts.append(_rectangle(left, width))
        if width > 7.0 * len(test):
            parts.append(f'<text x="{left + 4:.1f}" y="{_TOP + 12:g}">{escape(test)}</text>')
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    minutes = duration > 300
    for tick in _ticks(0.0, duration / 60 if minutes else duration):
        at = tick * 60 if minutes else tick
        if at <= duration:
            parts.append(f'<text x="{x(at):.1f}" y="{_HEIGHT - _BOTTOM + 16:g}" text-anchor="middle">{tick:g}</text>')
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    axis = "minutes" if minutes else "seconds"
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 4:g}" text-anchor="middle">time in {axis}</text>')
    parts.append(f'<text x="4" y="{_TOP - 10:g}">{escape(unit)}</text>')
    for stroke, points in lines:
        strokes = ["L".join(f"{x(seconds):.1f} {y(value):.1f}" for seconds, value in part) for part in _strokes(points)]
        if strokes:
            parts.append(f'<path d="M{"M".join(strokes)}" {stroke}/>')
    parts.append("</svg>")
    return f"<figure style='margin: 0'><h3>{escape(title)} ({escape(unit)})</h3>{''.join(parts)}</figure>"


def _rectangle(left: float, width: float) -> str:
    height = _HEIGHT - _TOP - _BOTTOM
    return f'<rect class="band" x="{left:.1f}" y="{_TOP:g}" width="{width:.1f}" height="{height:g}"/>'


def _phases(run: BurninRun) -> list[tuple[str, float, float]]:
    """(test, its start, its end), in seconds since the run started."""
    first: dict[str, TestResult] = {}
    for result in run.results:
        first.setdefault(result.test, result)
    spans = [(test, (result.started - run.started).total_seconds(), result.seconds) for test, result in first.items()]
    return [(test, start, start + seconds) for test, start, seconds in spans]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`; a wider range where the two are nearly equal."""
    margin = max(abs(high) * 0.1 - (high - low), 0.0) / 2  # an almost constant value is drawn as a level line
    low, high = low - margin, high + margin
    span = max(high - low, 1e-3)
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= span / 4)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 9) for number in range(first, last + 1)]


def _strokes(points: Points) -> list[Points]:
    """The curve in parts, split at its gaps and thinned to what a screen shows: each stretch keeps its lowest and
    highest point, so that no peak is lost."""
    stretch = max(1, math.ceil(2 * len(points) / _MAX_POINTS))
    parts: list[list[tuple[float, float]]] = []
    previous = -math.inf
    for point in points:
        if point[0] - previous > _GAP_SECONDS:
            parts.append([])
        parts[-1].append(point)
        previous = point[0]
    return [_thinned(part, stretch) for part in parts]


def _thinned(points: Points, stretch: int) -> Points:
    if stretch < 3:
        return points
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept
