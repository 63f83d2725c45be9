"""Every reading of NVML against nvidia-smi: the same value, or both say that there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gpuhealth.agent.capture import CaptureError, load
from gpuhealth.model.missing import Missing
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvmlReadings
from gpuproof.rows import COLUMNS, ROWS, Row
from gpuproof.smi import Smi, SmiError, Unavailable, Value, converted, invalid_column, table
from gpuproof.step import Context, Outcome, disproved, not_proved, proved

_ATTEMPTS = 3  # what changed between two looks agrees in one of them


class Comparison(msgspec.Struct, frozen=True):
    """One reading of one GPU and what nvidia-smi says of it."""

    gpu: str
    reading: str
    ours: str
    theirs: str  # as XML or CSV
    agrees: bool


class _Looks(msgspec.Struct):
    """What nvidia-smi says before and after our readings."""

    xml: list[Smi]
    csv: list[dict[str, dict[str, str]]]


def run(context: Context) -> Outcome:
    """Proved where all readings of all GPUs agree, and every GPU and MIG device is known to both."""
    if shutil.which("nvidia-smi") is None:
        return not_proved("nvidia-smi is not on PATH")
    best: list[Comparison] = []
    for attempt in range(_ATTEMPTS):
        try:
            looks, nvml = _look(context)
        except (SmiError, CaptureError) as error:
            return not_proved(str(error))
        found = list(_compared(nvml, looks))
        differing = {(each.gpu, each.reading) for each in found if not each.agrees}
        best = [
            each if each.agrees or not before or not before[0].agrees else before[0]
            for each in found
            for before in [[old for old in best if (old.gpu, old.reading) == (each.gpu, each.reading)]]
        ] if attempt else found  # fmt: skip
        if not differing or all(each.agrees for each in best):
            break
    context.save("readings.json", msgspec.json.format(msgspec.json.encode(best)).decode())
    context.save("readings.txt", _table(best))
    return _judged(best)


def _judged(found: Sequence[Comparison]) -> Outcome:
    wrong = [each for each in found if not each.agrees]
    lines = [f"{each.gpu} {each.reading}: we read {each.ours}, nvidia-smi says {each.theirs}" for each in wrong]
    agreed = len(found) - len(wrong)
    facts = {"compared": len(found), "agreed": agreed, "table": "readings.txt"}
    if wrong:
        return disproved(f"{len(wrong)} of {len(found)} readings disagree with nvidia-smi", *lines, **facts)
    if not found:
        return not_proved("no GPU to compare")
    return proved(f"{agreed} of {len(found)} readings agree with nvidia-smi", **facts)


def _look(context: Context) -> tuple[_Looks, NvmlReadings]:
    """nvidia-smi, our readings, nvidia-smi again. Raises SmiError and CaptureError."""
    looks = _Looks([], [])
    _ask(context, looks)
    path = context.folder / "readings.tar.gz"
    done = context.gpuhealth("capture", "-o", str(path), "--force")
    if done.code:
        raise SmiError(f"capture failed: {done.problem}")
    readings = load(path).rounds[-1].of(NVIDIA)
    _ask(context, looks)
    if isinstance(readings, Missing):
        raise SmiError(f"NVML was not read: {readings}")
    if readings.nvml.problem is not None:
        raise SmiError(f"NVML was not read: {readings.nvml.problem}")
    return looks, readings.nvml


def _ask(context: Context, looks: _Looks) -> None:
    done = context.run(["nvidia-smi", "-q", "-x"])
    context.save("nvidia-smi.xml", done.out)
    looks.xml.append(Smi(done.out))
    columns = list(COLUMNS)
    while columns:
        done = context.run(["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader"])
        if not (unknown := invalid_column(done.out + done.err)) or unknown not in columns:
            break
        columns.remove(unknown)  # of another version
    looks.csv.append(table(done.out, columns))


def _compared(nvml: NvmlReadings, looks: _Looks) -> Iterator[Comparison]:
    theirs = looks.xml[-1]
    yield _equal("driver", "driver_version", nvml.driver_version, theirs.of_driver("driver_version"))
    yield _equal("driver", "count", nvml.count, theirs.of_driver("attached_gpus"))
    for gpu in nvml.gpus:
        uuid = str(gpu.uuid)
        if not all(uuid in look.gpus for look in looks.xml):
            yield Comparison(uuid, "uuid", uuid, "no such GPU", agrees=False)
            continue
        yield _equal(uuid, "mig_devices", len(gpu.mig_devices), str(_mig_devices(theirs, uuid)))
        for row in ROWS:
            yield from _row(gpu, uuid, row, looks)
    for uuid in theirs.gpus.keys() - {gpu.uuid for gpu in nvml.gpus}:
        yield Comparison(uuid, "uuid", "no such GPU", uuid, agrees=False)


def _mig_devices(smi: Smi, uuid: str) -> int:
    return len(smi.gpus[uuid].findall("mig_devices/mig_device"))


def _equal(gpu: str, reading: str, ours: Any, theirs: str) -> Comparison:
    return Comparison(gpu, reading, str(ours), theirs, agrees=str(ours) == theirs)


def _row(gpu: GpuReadings, uuid: str, row: Row, looks: _Looks) -> Iterator[Comparison]:
    """The comparison with the XML, and with the CSV where it has a column. Nothing where neither has the value."""
    ours = row.read(gpu)
    sources = [("", [look.values(uuid, row.paths, row.convert) for look in looks.xml])]
    if row.column:
        cells = [look.get(uuid, {}).get(row.column) for look in looks.csv]
        values = [None if cell is None else converted(cell, row.convert) for cell in cells]
        sources.append((" (CSV)", values))
    for source, values in sources:
        said = [value for value in values if value is not None]
        if said:
            shown = " … ".join(dict.fromkeys(_shown(value) for value in said))
            yield Comparison(uuid, row.name + source, _shown(ours), shown, agrees=_agrees(ours, said, row))


def _agrees(ours: Any, said: Sequence[Value], row: Row) -> bool:
    if isinstance(ours, Missing):
        return any(isinstance(each, Unavailable) and each.unsupported >= ours.is_unsupported for each in said)
    values = [each for each in said if not isinstance(each, Unavailable)]
    if not values:
        return False
    if isinstance(ours, bool | str):
        return ours in values
    numbers = [float(value) for value in values if not isinstance(value, str)]
    most = row.tolerance + row.share * max(map(abs, numbers), default=0.0)
    return bool(numbers) and min(numbers) - most <= ours <= max(numbers) + most


def _shown(value: Any) -> str:
    if isinstance(value, Unavailable):
        return value.text or "nothing"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _table(found: Sequence[Comparison]) -> str:
    lines = [f"{'agrees' if each.agrees else 'DIFFERS':8} {each.gpu:42} {each.reading:40} {each.ours:32} {each.theirs}"
             for each in sorted(found, key=lambda each: (each.agrees, each.gpu))]  # fmt: skip
    return "\n".join(lines) + "\n"
