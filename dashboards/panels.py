"""Shared panel styles: a number, lines over time, a state history and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

GOOD, WARNING, BAD, UNKNOWN, PLAIN = "green", "orange", "red", "purple", "text"

Steps = dict[float, str]
"""Colours by the lowest value that has them."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and the legend of its series."""

    expr: str
    legend: str = ""
    ref: str = ""  # refId, by which a column names the query; by default a letter


def thresholds(base: str, steps: Steps) -> dashboard_builders.ThresholdsConfig:
    """Make thresholds: `base` below all steps, and the colour of each step from its value on."""
    levels = [dashboard.Threshold(None, base), *(dashboard.Threshold(value, colour) for value, colour in steps.items())]
    return dashboard_builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(levels)


def values(names: dict[str, tuple[str, str]]) -> dashboard.ValueMapping:
    """Make a mapping that shows a text and a colour instead of each value."""
    results = {
        value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(names.items())
    }
    return dashboard.ValueMap(options=results)


def _targets(queries: tuple[Query, ...], *, mode: Literal["series", "now", "rows"]) -> list[prometheus.Dataquery]:
    targets = []
    for letter, query in zip("ABCDEFGHIJKLMNOP", queries, strict=False):
        target = prometheus.Dataquery().ref_id(query.ref or letter).expr(query.expr)
        if query.legend:
            target.legend_format(query.legend)
        if mode == "series":
            target.range()
        else:
            target.instant()
        if mode == "rows":
            target.format(PromQueryFormat.TABLE)
        targets.append(target)
    return targets


def number(
    title: str,
    query: Query,
    what: str,
    *,
    base: str = GOOD,
    steps: Steps | None = None,
    names: dict[str, str] | None = None,
    unit: str = "none",
    width: int = 4,
    absent: str = "no agent",
) -> stat.Panel:
    """Make a panel with one large number on a coloured background; with `names`, the series name in its own colour."""
    panel = (
        stat.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(width)
        .height(4)
        .unit(unit)
        .no_value(absent)
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.VALUE)
        .thresholds(thresholds(BAD if names else base, steps or {}))
        .color_scheme(dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for name, colour in (names or {}).items():
        panel.override_by_name(name, [dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})])
    return panel.targets(list(_targets((query,), mode="now")))


def lines(
    title: str,
    *queries: Query,
    unit: str,
    what: str,
    width: int = 8,
    limits: Steps | None = None,
    bars: bool = False,
    top: float | None = None,
) -> timeseries.Panel:
    """Make a panel with a line for each series; with `bars`, stacked counts. `limits` are drawn as dashed lines."""
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
        .sort_by("Last *")
        .sort_desc(True)
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(width)
        .height(9)
        .unit(unit)
        .axis_soft_min(0)
        .line_width(1)
        .fill_opacity(60 if bars else 0)
        .draw_style(common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE)
        .show_points(common.VisibilityMode.NEVER if bars else common.VisibilityMode.AUTO)
        .span_nulls(False)  # a gap shows that a reading is missing
        .legend(legend)
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if bars:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if limits:
        panel.thresholds(thresholds("transparent", limits))
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    if top is not None:
        panel.max(top)
    return panel.targets(list(_targets(queries, mode="series")))


def history(title: str, query: Query, *, what: str, steps: Steps, width: int, height: int) -> statetimeline.Panel:
    """Make a panel with a bar for each series while it has a value, coloured by the value."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(width)
        .height(height)
        .show_value(common.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .no_value("none in this time range")
        .thresholds(thresholds("transparent", steps))
        .color_scheme(dashboard_builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .legend(common_builders.VizLegendOptions().show_legend(False))
        .targets(list(_targets((query,), mode="series")))
    )


@dataclass(frozen=True)
class Column:
    """A column of a table: its field and its appearance."""

    field: str  # a label, or "Value #REF" for the value of the query with that ref
    title: str
    unit: str = ""
    base: str = PLAIN
    steps: Steps | None = None
    names: dict[str, tuple[str, str]] | None = None
    width: int = 0

    def looks(self) -> list[dashboard.DynamicConfigValue]:
        """Return the properties that differ from those of the table."""
        properties: dict[str, object] = {}
        if self.unit:
            properties["unit"] = self.unit
        if self.steps:
            properties["thresholds"] = thresholds(self.base, self.steps).build()
        if self.names:
            properties["mappings"] = [values(self.names)]
        if self.steps or self.names:
            properties["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
        if self.width:
            properties["custom.width"] = self.width
        return [dashboard.DynamicConfigValue(name, value) for name, value in properties.items()]


def rows(
    title: str,
    *queries: Query,
    columns: list[Column],
    what: str,
    absent: str,
    sort: str,
    width: int = 24,
    height: int = 8,
) -> table.Panel:
    """Make a table of present values: rows of all queries, merged by their labels, with these columns only."""
    wanted = [column.field for column in columns]
    panel = (
        table.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(width)
        .height(height)
        .no_value(absent)
        .filterable(True)
        .cell_height(common.TableCellHeight.SM)
        .with_transformation(dashboard.DataTransformerConfig("merge", options={}))
        .with_transformation(
            dashboard.DataTransformerConfig("filterFieldsByName", options={"include": {"names": wanted}})
        )
        .with_transformation(
            dashboard.DataTransformerConfig(
                "organize",
                options={
                    "indexByName": {field: index for index, field in enumerate(wanted)},
                    "renameByName": {column.field: column.title for column in columns},
                    "excludeByName": {},
                },
            )
        )
        .sort_by([common_builders.TableSortByFieldState().display_name(sort).desc(False)])
    )
    for column in columns:
        if looks := column.looks():
            panel.override_by_name(column.title, looks)
    return panel.targets(list(_targets(queries, mode="rows")))
