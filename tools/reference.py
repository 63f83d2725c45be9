"""Writes daemonset/reference.md: every finding, setting and metric. Usage: python tools/reference.py

Everything is read from the code. Findings are those of gpuhealth.monitors. Settings are those of Settings
with the comments that explain them. Metrics are all that an agent and a controller make; neither has to run.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import tempfile
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest.mock import patch

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from structlog.testing import capture_logs

from gpuhealth.agent.agent import Agent
from gpuhealth.agent.metrics import Exposition
from gpuhealth.api import metrics as names
from gpuhealth.controller import http_app as controller_pages
from gpuhealth.controller.controller import Controller
from gpuhealth.fleet.store import ObjectStore
from gpuhealth.kube.client import Client
from gpuhealth.model.codes import CODES, Code
from gpuhealth.model.finding import Severity
from gpuhealth.model.missing import UNREAD
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.readings import NvidiaReadings, NvmlReadings
from gpuhealth.monitors.registry import AnyMonitor, monitors
from gpuhealth.monitors.settings import Settings
from gpuhealth.runtime import metric_families as families
from gpuhealth.runtime.exposition import Rendering

FILE = Path(__file__).parents[1] / "daemonset/reference.md"
COMMAND = "python tools/reference.py"

_HEAD = f"""# Reference

Made from the code by `{COMMAND}`; changes made here are lost.
"""
_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"), (0.001, "ms"))
_WORDS = {
    "PositiveDuration": "duration above 0",
    "Amount": "count or percentage",
    "Any": "anything",
    "Count": "count",
    "Duration": "duration",
    "Path": "path",
    "bool": "true or false",
    "float": "number",
    "int": "integer",
    "str": "text",
}
_UNITS = ("bytes", "celsius", "milliwatts", "percent", "seconds", "per_hour", "per_minute", "per_second")


def text() -> str:
    """The whole reference in Markdown."""
    return "\n".join([_HEAD, *_findings(), *_monitors(), *_settings(), *_metrics()])


def _table(columns: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; `columns` are separated by commas."""
    names = columns.split(", ")
    lines = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# -- findings ----------------------------------------------------------------------------------------------------------


def _findings() -> Iterator[str]:
    monitors()
    codes = CODES.defined()
    yield (
        "## Findings\n\n"
        "Defaults: the setting `findings` changes them by code or pattern. A warning never quarantines by default.\n"
        "XIDs and SXids are findings named `xid.N` and `sxid.N`: `gpuhealth explain N` shows one of them, and\n"
        "`gpuhealth explain CODE` shows what to do about any finding.\n"
    )
    columns = "code, severity, quarantine, drain, action, raised, meaning, clears"
    yield _table(columns, (_finding(code) for code in sorted(codes, key=lambda code: code.name)))
    essential = ", ".join(f"`{code.name}`" for code in sorted(codes, key=lambda code: code.name) if code.essential)
    yield f"While one of these cannot be checked, the state of its component is unknown: {essential}.\n"


def _finding(code: Code) -> Iterator[str]:
    quarantine = "if critical" if code.quarantine and code.severity is not Severity.CRITICAL else _yes(code.quarantine)
    yield from (f"`{code.name}`", str(code.severity), quarantine, _yes(code.drain), f"`{code.action}`")
    yield f"after {_duration(code.raise_after)}" if code.raise_after else "at once"
    yield from (code.meaning, code.clears_when)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# -- settings ----------------------------------------------------------------------------------------------------------


class _Section(NamedTuple):
    """A part of the settings file."""

    path: str
    model: type[BaseModel]
    values: BaseModel | None  # its defaults; None where nothing is set by default


def _settings() -> Iterator[str]:
    yield (
        "## Settings\n\n"
        "A duration is written as `10s`, `5m`, `1h30m`, `14d`, or as a number of seconds. A count is a whole number\n"
        "from 0. A percentage is written as `10%`. The variable of `nvml.warn_after` is `GPUHEALTH_NVML__WARN_AFTER`.\n"
    )
    explained: set[type[BaseModel]] = set()
    for section in _sections(_Section("", Settings, None)):
        if section.values is None and section.model in explained:
            continue  # the same fields without defaults of their own, such as the findings of a pool
        explained.add(section.model)
        yield f"### {section.path or 'Top level'}\n\n{inspect.cleandoc(section.model.__doc__ or '')}\n"
        yield _table("setting, type, default, unit, meaning", _rows(section))


_KEYS = {"monitors": ".NAME"}
"""What stands for the keys of a map in a path, where they are no finding codes."""


def _monitors() -> Iterator[str]:
    yield (
        "## Monitors\n\n"
        "Each monitor is read in rounds of its own. `monitors.NAME` in the settings switches one off or changes its\n"
        "interval and deadline.\n"
    )
    rows = [
        (f"`{monitor.name}`", monitor.summary, _duration(monitor.deadline), ", ".join(sorted(_subjects(monitor))))
        for monitor in monitors()
    ]
    yield _table("monitor, what it reads, deadline, findings", rows)


def _subjects(monitor: AnyMonitor) -> set[str]:
    subjects = {f"`{code.name.partition('.')[0]}.*`" for code in monitor.codes}
    return subjects | ({"`sxid.*`"} if monitor.name == "nvidia" else set())


def _sections(section: _Section) -> Iterator[_Section]:
    """A section and all sections in it."""
    yield section
    for name, field in section.model.model_fields.items():
        path = f"{section.path}.{name}".removeprefix(".")
        default = _default(section, name, field)
        if isinstance(default, BaseModel):
            yield from _sections(_Section(path, type(default), default))
            continue
        for model in _models(field.annotation):
            origin = getattr(field.annotation, "__origin__", None)
            more = {dict: _KEYS.get(name, ".CODE"), tuple: "[]"}.get(origin, "") if origin else ""
            yield from _sections(_Section(path + more, model, None))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type holds."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _default(section: _Section, name: str, field: FieldInfo) -> Any:
    return getattr(section.values, name) if section.values is not None else field.get_default()


def _rows(section: _Section) -> Iterator[Iterable[str]]:
    explained = explanations(section.model)
    for name, field in section.model.model_fields.items():
        value = _default(section, name, field)
        if isinstance(value, BaseModel):
            continue  # a section of its own
        annotation, meaning = explained[name]
        unit = "seconds" if "duration" in annotation else next((u for u in _UNITS if name.endswith(u)), "")
        path = f"{section.path}.{name}".removeprefix(".")
        yield f"`{path}`", annotation, _shown(value, field, annotation), unit.replace("_", " "), meaning


def _shown(value: Any, field: FieldInfo, annotation: str) -> str:
    """A default as the settings file would have it."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "host name" if field.default_factory.__name__ == "gethostname" else "computed"
    if value is None:
        return "none"
    if annotation.startswith("duration"):
        return f"`{_duration(value)}`"
    if isinstance(value, str | Path):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _duration(seconds: float) -> str:
    """Seconds in the largest unit that divides them."""
    size, unit = next(((size, unit) for size, unit in _SPANS if seconds and seconds % size == 0), (1.0, "s"))
    return f"{seconds / size:g}{unit}"


def explanations(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Type and meaning of each field; the meaning is its description, the text below it or its inline comment."""
    bases = [base for base in reversed(model.__mro__) if issubclass(base, BaseModel) and base is not BaseModel]
    if len(bases) > 1:  # the settings of all monitors and of the core are one model
        return {name: text for base in bases for name, text in _own_explanations(base).items()}
    return _own_explanations(model)


def _own_explanations(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    if "__annotations__" not in vars(model) or not inspect.getmodule(model) or model.__module__ == Settings.__module__:
        return {}
    source = textwrap.dedent(inspect.getsource(model))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    (body,) = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    explained = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        beside = [comments[n] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in comments]
        below = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        field = model.model_fields.get(name)
        meaning = (field.description if field else "") or str(below) or " ".join(beside)
        explained[name] = (_type(node.annotation, model), " ".join(meaning.split()))
    return explained


def _type(node: ast.expr, model: type[BaseModel]) -> str:
    """A type in words, from how the field is written."""
    match node:
        case ast.Name(id=name):
            found = getattr(sys.modules[model.__module__], name, None)
            if inspect.isclass(found) and issubclass(found, Enum):
                return ", ".join(f"`{each.value}`" for each in found)
            return _WORDS.get(name) or ("section" if inspect.isclass(found) else name)
        case ast.Constant(value=None):
            return "none"
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{_type(left, model)} or {_type(right, model)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return ", ".join(f"`{choice}`" for choice in _constants(choices))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, *_])):
            return f"list of {_type(item, model)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return f"map of {_type(key, model)} to {_type(value, model)}"
        case _:
            return f"`{ast.unparse(node)}`"


def _constants(node: ast.expr) -> list[Any]:
    value = ast.literal_eval(node)
    return list(value) if isinstance(value, tuple) else [value]


# -- metrics -----------------------------------------------------------------------------------------------------------


class _Family(NamedTuple):
    """A metric as it is declared."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def _metrics() -> Iterator[str]:
    yield "## Metrics\n\nBoth processes also have the metrics `process_*` that every Prometheus client has.\n"
    for title, show in (("Agent", _show_agent), ("Controller", _show_controller)):
        rows = [(f"`{m.name}`", m.kind, ", ".join(f"`{each}`" for each in m.labels), m.meaning) for m in _made_by(show)]
        yield f"### {title}\n\n{_table('metric, type, labels, meaning', rows)}"


def _made_by(show: Callable[[Path], bytes]) -> list[_Family]:
    """The metrics declared while `show` runs, by name. RuntimeError where one of them could not be made."""
    made: list[_Family] = []

    def recorded(family: Callable[..., Metric], kind: str, end: str) -> Callable[..., Metric]:
        def declare(name: str, meaning: str, labels: Iterable[str]) -> Metric:
            made.append(_Family(name + end, kind, tuple(labels), meaning))
            return family(name, meaning, labels=labels)

        return declare

    gauge = recorded(GaugeMetricFamily, "gauge", "")
    counter = recorded(CounterMetricFamily, "counter", "_total")
    with (
        capture_logs(),  # a new agent warns that it remembers nothing
        tempfile.TemporaryDirectory() as folder,
        patch.object(families, "GaugeMetricFamily", gauge),
        patch.object(families, "CounterMetricFamily", counter),
    ):
        shown = show(Path(folder)).decode()
    failed = [line for line in shown.splitlines() if "metrics_errors_total{" in line and not line.endswith(" 0.0")]
    if failed:
        raise RuntimeError(f"collectors failed, so metrics are missing from the reference: {', '.join(failed)}")
    return sorted(set(made))


def _show_agent(folder: Path) -> bytes:
    """The metrics of an agent that has read a node without GPUs."""
    settings = {"journal": {"path": folder / "journal.sqlite"}, "kubernetes": {"enabled": False}}
    agent = Agent(Settings.model_validate(settings))
    try:
        for runner in agent.runners.values():
            readings = NvidiaReadings(nvml=NvmlReadings(answered=True)) if runner.monitor is NVIDIA else UNREAD
            agent.node_health.apply_round(runner.monitor, readings)
        return Exposition(agent, max_age_seconds=10.0).text()
    finally:
        agent.journal.close()


def _show_controller(_folder: Path) -> bytes:
    """The metrics of a controller that leads and has listed a cluster without nodes."""
    controller = Controller(Settings.model_validate({"controller": {"election": {"enabled": False}}}), connect=Client)
    for table in vars(controller.fleet).values():
        if isinstance(table, ObjectStore):
            table.listed = True
    return Rendering(
        names.CONTROLLER_METRICS_ERRORS, controller_pages.ControllerCollector(controller).collectors()
    ).text()


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
