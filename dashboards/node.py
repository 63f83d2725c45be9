"""The dashboard of one node: the verdict and why at the top, then one row a subject, the agent itself last."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.models import dashboard, units

from dashboards.panels import BAD, GOOD, SOURCE, UNKNOWN, WARNING, Column, Query, history, lines, number, rows

NODE = 'instance=~"$instance"'
WINDOW = "$__rate_interval"
STATES = {"healthy": GOOD, "degraded": WARNING, "unhealthy": BAD, "unknown": UNKNOWN}
GPU = "GPU {{index}}"
_BY_SEVERITY = ('severity="critical"', 'severity!="critical"')


def metric(name: str, *matchers: str) -> str:
    """A metric of the agent on the chosen node."""
    return f"gpuhealth_{name}{{{','.join([NODE, *matchers])}}}"


def or_zero(expr: str) -> str:
    """Zero instead of nothing, but only while there is an agent to say so."""
    return f"({expr}) or sum({metric('node_healthy')}) * 0"


def per_gpu(expr: str) -> str:
    """Names the GPUs by NVML's index, as nvidia-smi does; the uuid stays."""
    return f"({expr}) * on (instance, gpu) group_left (index) {metric('gpu_info')}"


def grown(name: str) -> str:
    """What a counter has grown by, its first count included: a series that begins at one has grown by one."""
    counter = metric(name)
    return f"({counter} unless {counter} offset {WINDOW}) or increase({counter}[{WINDOW}])"


def gpu_lines(name: str, *matchers: str) -> Query:
    """A gauge, a line for each GPU."""
    return Query(per_gpu(metric(name, *matchers)), GPU)


def board() -> dashboard_builders.Dashboard:
    """The dashboard of GPU nodes, to be built."""
    board = (
        dashboard_builders.Dashboard("GPU health: node")
        .uid("gpuhealth-node")
        .description("One GPU node as its agent sees it. Made by dashboards/generate.py; changes made here are lost.")
        .tags(["gpuhealth", "gpu"])
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .timezone("browser")
        .refresh("30s")
        .readonly()
    )
    for variable in variables():
        board.with_variable(variable)
    for subject in (verdict, gpus, temperature, power, memory, links, kernel_log, coverage, agent):
        subject(board)
    return board


def variables() -> list[dashboard_builders.QueryVariable | dashboard_builders.DatasourceVariable]:
    """A node is chosen by the name that its agent gives it; `instance`, where it is scraped, follows."""
    everything = dashboard.VariableOption(text=["All"], value=["$__all"])
    node = (
        dashboard_builders.QueryVariable("node")
        .label("Node")
        .query("label_values(gpuhealth_agent_info, node)")
        .sort(dashboard.VariableSort.NATURAL_ASC)
    )
    instance = (
        dashboard_builders.QueryVariable("instance")
        .query('label_values(gpuhealth_agent_info{node="$node"}, instance)')
        .hide(dashboard.VariableHide.HIDE_VARIABLE)
        .multi(True)
        .include_all(True)
        .current(everything)
    )
    for variable in (node, instance):
        variable.datasource(SOURCE).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return [dashboard_builders.DatasourceVariable("datasource").label("Data source").type("prometheus"), node, instance]


def verdict(board: dashboard_builders.Dashboard) -> None:
    """Can the node be trusted, and if not, why."""
    finding = metric("finding")
    named = f"{finding} * on (instance, gpu) group_left (index, pci) {metric('gpu_info')}"
    board.with_panel(
        number(
            "Verdict",
            Query(f"{metric('verdict')} == 1", "{{verdict}}"),
            "Unknown: an essential check could not be made. No agent: it does not answer; then nothing is known.",
            names=STATES,
        )
    )
    counts = [
        ("Critical findings", "finding", 'severity="critical"', BAD, "Each makes the node unhealthy."),
        ("Warnings", "finding", 'severity="warning"', WARNING, "Each makes the node degraded."),
        (
            "Quarantine blocked",
            "quarantine_blocked",
            "",
            BAD,
            "Should be out of service, but a budget has no free slot for it.",
        ),
    ]
    for title, name, matcher, colour, what in counts:
        query = Query(or_zero(f"sum({metric(name, *filter(None, [matcher]))})"))
        board.with_panel(number(title, query, what, steps={1: colour}))
    board.with_panel(
        number(
            "Checks not made",
            Query(or_zero(f"count(count by (check) ({metric('not_checked')}))")),
            "What could not be read is neither healthy nor a fault; the row on coverage says why.",
            steps={1: WARNING},
        )
    )
    board.with_panel(
        number(
            "Last round",
            Query(f"time() - max({metric('agent_last_round_timestamp_seconds')})"),
            "How long ago the agent last looked at everything.",
            unit=units.Seconds,
            steps={60: WARNING, 120: BAD},
        )
    )
    severities = {"critical": ("critical", BAD), "warning": ("warning", WARNING), "info": ("info", "blue")}
    board.with_panel(
        rows(
            "Active findings",
            Query(f"{named} or on (instance, code, component) {finding}"),
            columns=[
                Column("severity", "Severity", names=severities, width=100),
                Column("code", "Finding", width=220),
                Column("index", "GPU", width=70),
                Column("pci", "PCI address", width=130),
                Column("component", "Component"),
            ],
            what="`gpuhealth explain FINDING` says what it means and what to do.",
            absent="none",
            sort="Severity",
            width=12,
            height=8,
        )
    )
    critical, others = (f"max by (code, component) ({metric('finding', m)})" for m in _BY_SEVERITY)
    board.with_panel(
        history(
            "Findings over time",
            Query(f"2 * {critical} or {others}", "{{code}} {{component}}"),
            what="A bar while a finding is active: red for critical, orange for others.",
            steps={1: WARNING, 2: BAD},
            width=12,
            height=8,
        )
    )


def gpus(board: dashboard_builders.Dashboard) -> None:
    """Every GPU in a line, one that is gone too."""
    board.with_row(dashboard_builders.Row("GPUs"))
    numbers = [
        ("gpu_temperature_celsius", ""),
        ("gpu_temperature_margin_celsius", ""),
        ("gpu_power_watts", ""),
        ("gpu_utilization_ratio", ""),
        ("gpu_memory_used_bytes", f" / max by (gpu) ({metric('gpu_memory_total_bytes')})"),
        ("gpu_sm_clock_hertz", ""),
    ]
    board.with_panel(
        rows(
            "State",
            Query(f"max by (gpu, index, pci, model, serial) ({metric('gpu_info')})"),
            Query(f"max by (gpu, verdict) ({metric('gpu_verdict')} == 1)"),
            *(Query(f"max by (gpu) ({metric(name)}){rest}") for name, rest in numbers),
            columns=[
                Column("index", "GPU", width=60),
                Column(
                    "verdict", "Verdict", names={name: (name, colour) for name, colour in STATES.items()}, width=100
                ),
                Column("pci", "PCI address", width=130),
                Column("model", "Model"),
                Column("Value #C", "Temperature", units.Celsius),
                Column("Value #D", "Margin", units.Celsius, BAD, {1: WARNING, 6: GOOD}),
                Column("Value #E", "Power", units.Watt),
                Column("Value #F", "Utilization", units.PercentUnit),
                Column("Value #G", "Memory", units.PercentUnit),
                Column("Value #H", "Clock", units.Hertz),
                Column("serial", "Serial"),
                Column("gpu", "UUID"),
            ],
            what="An empty cell was not read. A GPU that is gone keeps its line, with what is remembered of it.",
            absent="no GPU is read",
            sort="GPU",
            height=9,
        )
    )


def temperature(board: dashboard_builders.Dashboard) -> None:
    """Heat, by what each GPU itself says is too much."""
    board.with_row(dashboard_builders.Row("Temperature"))
    for title, name, limits, what in (
        (
            "Margin to slowdown",
            "gpu_temperature_margin_celsius",
            {0.0: BAD, 5.0: WARNING},
            "At zero the GPU slows down.",
        ),
        ("Core", "gpu_temperature_celsius", None, "Temperature of the core."),
        ("Memory", "gpu_memory_temperature_celsius", None, "Temperature of the memory, where the GPU tells it."),
    ):
        board.with_panel(lines(title, gpu_lines(name), unit=units.Celsius, what=what, limits=limits))


def power(board: dashboard_builders.Dashboard) -> None:
    """Power, and the clocks that come of it."""
    board.with_row(dashboard_builders.Row("Power and clocks"))
    throttled = per_gpu(f"rate({metric('gpu_throttle_seconds_total')}[{WINDOW}])")
    board.with_panel(
        lines(
            "Throttled share of time",
            Query(throttled, f"{GPU} {{{{reason}}}}"),
            unit=units.PercentUnit,
            what="From the driver's own counters: what falls between two readings is in them. sw_power_cap alone is"
            " normal under load.",
            top=1,
        )
    )
    limit = Query(f"min by (instance) ({metric('gpu_power_limit_watts')})", "lowest limit")
    board.with_panel(
        lines("Power", gpu_lines("gpu_power_watts"), limit, unit=units.Watt, what="Power, and the limit in force.")
    )
    board.with_panel(
        lines(
            "SM clock", gpu_lines("gpu_sm_clock_hertz"), unit=units.Hertz, what="A busy GPU far below its peers lags."
        )
    )


def memory(board: dashboard_builders.Dashboard) -> None:
    """The GPUs' memory: errors, and what was done about them."""
    board.with_row(dashboard_builders.Row("Memory errors"))

    def errors(severity: str) -> Query:
        counter = metric("gpu_ecc_errors_total", f'type="{severity}",counter="volatile",location="total"')
        return Query(per_gpu(f"sum by (instance, gpu) (increase({counter}[{WINDOW}]))"), GPU)

    for title, severity, what in (
        ("Uncorrectable ECC errors", "uncorrected", "New errors. Any of them has cost somebody their data."),
        ("Corrected ECC errors", "corrected", "New errors. A few are normal; a steady stream is a failing part."),
    ):
        board.with_panel(lines(title, errors(severity), unit=units.Short, what=what, bars=True))
    board.with_panel(
        lines(
            "Remapped rows",
            Query(per_gpu(metric("gpu_remapped_rows")), f"{GPU} {{{{kind}}}}"),
            Query(per_gpu(metric("gpu_row_remap_pending")), f"{GPU} pending"),
            Query(per_gpu(metric("gpu_row_remap_failure")), f"{GPU} failure"),
            unit=units.Short,
            what="pending: the GPU must be reset. failure: the GPU must be replaced. The others count rows.",
        )
    )


def links(board: dashboard_builders.Dashboard) -> None:
    """The panels of PCIe and NVLink links."""
    board.with_row(dashboard_builders.Row("PCIe and NVLink"))
    replays = per_gpu(f"rate({metric('gpu_pcie_replays_total')}[{WINDOW}])")
    nvlinks = per_gpu(f"sum by (instance, gpu) ({metric('nvlink_up')})")
    board.with_panel(
        lines("NVLinks up", Query(nvlinks, GPU), unit=units.Short, what="Fewer than its peers: a link is down.")
    )
    board.with_panel(
        lines("PCIe width", gpu_lines("gpu_pcie_width_lanes"), unit=units.Short, what="Lanes in use; mostly 16.")
    )
    board.with_panel(
        lines(
            "PCIe replays",
            Query(replays, GPU),
            unit=units.CountsPerSecond,
            what="Packets sent again: a bad slot or riser.",
        )
    )


def kernel_log(board: dashboard_builders.Dashboard) -> None:
    """What the kernel log says."""
    board.with_row(dashboard_builders.Row("Kernel log"))
    xids = Query(f"sum by (xid, gpu) ({grown('xid_errors_total')})", "XID {{xid}} {{gpu}}")
    events = Query(f"sum by (kind) ({grown('kernel_events_total')})", "{{kind}}")
    what = "`gpuhealth explain XID` says what one means. 13, 31, 43 and 45 are mostly programs' own faults."
    board.with_panel(lines("XIDs", xids, unit=units.Short, what=what, bars=True, width=12))
    what = "Records that mean something, by kind."
    board.with_panel(lines("Kernel events", events, unit=units.Short, what=what, bars=True, width=12))


def coverage(board: dashboard_builders.Dashboard) -> None:
    """What is not known."""
    board.with_row(dashboard_builders.Row("Coverage"))
    board.with_panel(
        history(
            "Not checked",
            Query(f"max by (check, reason) ({metric('not_checked')})", "{{check}}: {{reason}}"),
            what="Checks that could not read what they need. What this hardware does not have is not among them.",
            steps={1: UNKNOWN},
            width=16,
            height=9,
        )
    )
    stale = f"topk(5, time() - max by (check) ({metric('check_last_success_timestamp_seconds')}))"
    board.with_panel(
        lines(
            "Longest unmeasured",
            Query(stale, "{{check}}"),
            unit=units.Seconds,
            what="Time since a check was last made.",
        )
    )


def agent(board: dashboard_builders.Dashboard) -> None:
    """Whether the agent itself is well."""
    board.with_row(dashboard_builders.Row("The agent itself"))
    cpu = f"rate(process_cpu_seconds_total{{{NODE}}}[{WINDOW}]) and on (instance) {metric('agent_info')}"
    resident = metric("agent_resident_memory_bytes")
    plain: list[tuple[str, list[Query], str, str]] = [
        (
            "Memory",
            [Query(resident, "{{process}}")],
            units.BytesIEC,
            "Resident memory of the agent, of its NVML processes.",
        ),
        ("CPU", [Query(cpu, "cores")], units.Short, "Cores used by the agent."),
        (
            "Driver answers",
            [
                Query(metric("agent_nvml_seconds"), "NVML"),
                Query(metric("agent_round_seconds"), "whole round"),
                Query(metric("agent_judge_seconds"), "judging"),
            ],
            units.Seconds,
            "How long the driver took, or has been waited for.",
        ),
        (
            "NVML processes",
            [
                Query(metric("agent_nvml_processes"), "running"),
                Query(metric("agent_driver_released"), "driver let go on request"),
            ],
            units.Short,
            "More than one: another was started beside one that hangs.",
        ),
        (
            "Kernel log",
            [Query(metric("agent_kmsg_lag_seconds"), "age of the last record when read")],
            units.Seconds,
            "How far the reader of the kernel log is behind.",
        ),
        (
            "API server",
            [
                Query(
                    f"sum by (method, status) (rate({metric('kube_requests_total')}[{WINDOW}]))",
                    "{{method}} {{status}}",
                )
            ],
            units.CountsPerSecond,
            "Calls by answer; 0 is none. A healthy node writes nothing.",
        ),
        (
            "Failures",
            [
                Query(f"increase({metric('loop_failures_total')}[{WINDOW}])", "loop {{loop}}"),
                Query(f"increase({metric('agent_journal_errors_total')}[{WINDOW}])", "journal"),
                Query(f"increase({metric('agent_kmsg_lost_records_total')}[{WINDOW}])", "kernel records lost"),
                Query(f"1 - {metric('agent_config_valid')}", "configuration not usable"),
            ],
            units.Short,
            "All zero, or the agent's own log says why.",
        ),
    ]
    for position, (title, queries, unit, what) in enumerate(plain):
        width = 6 if position < 4 else 8
        board.with_panel(lines(title, *queries, unit=unit, what=what, width=width))
