"""Grafana's objects, made of what ``panels.py`` describes."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from monitoring.dashboards.panels import CALLBACKS, NUMBER, Board, Draw, Events, Link, Panel, Query, Variable, Word
from monitoring.thresholds import Threshold

_ROWS_OF_A_TABLE = 20

_Drawn = TypeVar("_Drawn", stat.Panel, timeseries.Panel, statetimeline.Panel, table.Panel)
_AnyPanel = stat.Panel | timeseries.Panel | statetimeline.Panel | table.Panel

# Chosen by the reader, so that the files work with any Prometheus.
_SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")


def json(board: Board) -> str:
    """The file that Grafana reads. It is the same for the same board, whenever it is made."""
    return JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False).encode(_dashboard(board).build()) + "\n"


def steps(late: Threshold | None, bad: Threshold | None) -> list[model.Threshold]:
    """Colours from a value on; a rule fires above it. Above 0 begins at 1 where things are counted."""
    found = [model.Threshold(None, "green" if late or bad else "text")]
    for one, colour in ((late, "orange"), (bad, "red")):
        if one is not None:
            found.append(model.Threshold(one.value or 1, colour))
    return found


# --- a whole dashboard -------------------------------------------------------------------------------


def _dashboard(board: Board) -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["cbq-exporter"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("30s")
        .link(_link_between_dashboards(board.link))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in board.variables:
        made.with_variable(_variable(variable))
    for mark in board.events:
        made.annotation(_annotation(mark))
    identifier = 0
    for row in board.rows:
        identifier += 1
        made.with_row(dashboard.Row(row.question).id(identifier))
        for panel in row.panels:
            identifier += 1
            made.with_panel(_panel(panel).id(identifier))
    return made


def _link_between_dashboards(link: Link) -> dashboard.DashboardLink:
    """With the choices and the time that are shown now."""
    return (
        dashboard.DashboardLink(link.title)
        .type(model.DashboardLinkType.LINK)
        .icon("dashboard")
        .url(link.url)
        .include_vars(True)
        .keep_time(True)
    )


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(_SOURCE)
        .query(variable.values)
        .definition(variable.values)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if variable.many:
        # Without a value of its own, All would list every value, and a new queue would be missing until a reload.
        made.multi(True).include_all(True).all_value(".*")
        made.current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made


def _annotation(mark: Events) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(mark.title)
        .datasource(_SOURCE)
        .enable(True)
        .icon_color(mark.colour)
        .expr(mark.expr)
        .title_format(mark.title)
        .text_format(mark.text)
        .tag_keys(",".join(mark.tags))
        .step("30s")
    )


# --- a panel -----------------------------------------------------------------------------------------


def _panel(panel: Panel) -> _AnyPanel:
    match panel.draw:
        case Draw.NUMBER:
            return _number(panel)
        case Draw.LINES | Draw.BARS:
            return _graph(panel)
        case Draw.STATES:
            return _states(panel)
        case Draw.TABLE:
            return _table(panel)


def _common(made: _Drawn, panel: Panel) -> _Drawn:
    made.title(panel.title).description(panel.description).unit(panel.unit).datasource(_SOURCE)
    made.span(panel.wide).height(panel.high)
    made.thresholds(
        dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps(panel.late, panel.bad))
    )
    # A number that is missing is one that nobody could read: with Redis away, "none" would be a lie.
    empty = panel.empty or {Draw.NUMBER: "unknown", Draw.BARS: "none"}.get(panel.draw, "")
    if empty:
        made.no_value(empty)
    for reference, query in zip(ascii_uppercase, panel.queries, strict=False):
        made.with_target(_target(query, reference, panel.draw))
    return made


def _target(query: Query, reference: str, draw: Draw) -> prometheus.Dataquery:
    made = (
        prometheus.Dataquery()
        .ref_id(reference)
        .datasource(_SOURCE)
        .expr(query.expr)
        .editor_mode(QueryEditorMode.CODE)
        .format(PromQueryFormat.TABLE if draw is Draw.TABLE else PromQueryFormat.TIME_SERIES)
    )
    if draw in (Draw.NUMBER, Draw.TABLE):
        return made.instant()
    return made.range().legend_format(query.legend)


def _number(panel: Panel) -> stat.Panel:
    made = (
        stat.Panel()
        .color_scheme(_colour(model.FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if panel.unit in (CALLBACKS, NUMBER):
        made.decimals(0)  # increase() extrapolates whole numbers to fractions
    return _common(made, panel)


def _graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .color_scheme(_colour(model.FieldColorModeId.PALETTE_CLASSIC))
        .min(0)
        .legend(
            options.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
        .tooltip(options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .show_points(common.VisibilityMode.AUTO)
    )
    if panel.late or panel.bad:
        made.thresholds_style(options.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    if panel.draw is Draw.BARS:
        made.draw_style(common.GraphDrawStyle.BARS).fill_opacity(80).line_width(0)
        made.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL))
    else:
        made.draw_style(common.GraphDrawStyle.LINE).fill_opacity(10).line_width(2)
    return _common(made, panel)


def _states(panel: Panel) -> statetimeline.Panel:
    assert panel.words is not None
    return _common(
        statetimeline.Panel()
        .color_scheme(_colour(model.FieldColorModeId.THRESHOLDS))
        .mappings([_words(panel.words)])
        .show_value(common.VisibilityMode.AUTO)
        .row_height(0.8)
        .legend(options.VizLegendOptions().show_legend(False)),
        panel,
    )


def _table(panel: Panel) -> table.Panel:
    references = [f"Value #{reference}" for reference in ascii_uppercase[: len(panel.queries)]]
    titles = dict(panel.columns) | dict(zip(references, (query.legend for query in panel.queries), strict=True))
    made = (
        table.Panel()
        .color_scheme(_colour(model.FieldColorModeId.THRESHOLDS))
        .with_transformation(model.DataTransformerConfig("merge", options={}))
        .with_transformation(
            model.DataTransformerConfig("sortBy", options={"sort": [{"field": references[0], "desc": True}]})
        )
        .with_transformation(model.DataTransformerConfig("limit", options={"limitField": _ROWS_OF_A_TABLE}))
        .with_transformation(
            model.DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: place for place, name in enumerate(titles)},
                    "renameByName": titles,
                },
            )
        )
    )
    for query in panel.queries:
        made.override_by_name(query.legend, _column(query))
    if panel.link is not None:
        link = {"title": panel.link.title, "url": panel.link.url}
        made.override_by_name(panel.columns[-1][1], [model.DynamicConfigValue("links", [link])])
    return _common(made, panel)


def _column(query: Query) -> list[model.DynamicConfigValue]:
    found = [model.DynamicConfigValue("unit", query.unit)]
    if query.bad is not None:
        found.append(model.DynamicConfigValue("custom.cellOptions", common.TableColorTextCellOptions()))
        limits: dict[str, Any] = {"mode": model.ThresholdsMode.ABSOLUTE, "steps": steps(None, query.bad)}
        found.append(model.DynamicConfigValue("thresholds", limits))
    return found


def _colour(mode: model.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _words(words: Sequence[Word]) -> model.ValueMap:
    return model.ValueMap(
        {
            str(value): model.ValueMappingResult(text=word.text, color=word.colour, index=value)
            for value, word in enumerate(words)
        }
    )
