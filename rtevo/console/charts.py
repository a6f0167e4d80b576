"""The console's charts, as options of ECharts."""

from __future__ import annotations

import math
from typing import Any

from rtevo.console.view import View
from rtevo.records import FD_LIMIT_MM

__all__ = ["displacement", "fitness", "motion"]

VOLUMES = 300  # number of the last volumes that are drawn
FEWEST, MORE = 8, 1.25  # generations that the axis has room for; of those that have come
STEPS = 4  # smallest number of steps on the axis of fitness
GRID, LINE, DIM, TEXT = "#171c22", "#222931", "#6f7a86", "#aeb7c0"
CALM, BLUE, AMBER, RED = "#4ca596", "#6a9fcc", "#d39b3a", "#d8564c"
AXES = ("x", "y", "z", "pitch", "roll", "yaw")
COLOURS = ("#4ca596", "#6a9fcc", "#a98bc9", "#8a9a5b", "#b9846a", "#7d8894")
# a vertical line with two caps from [x, low, high]
WHISKER = """(params, api) => {
    const low = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)]);
    const line = (x1, y1, x2, y2) => ({type: "line", shape: {x1, y1, x2, y2}, style: {stroke: "#4ca596", lineWidth: 1.5}});
    return {type: "group", children: [line(low[0], low[1], high[0], high[1]), line(low[0] - 4, low[1], low[0] + 4, low[1]),
        line(high[0] - 4, high[1], high[0] + 4, high[1])]};
}"""


def _axis(kind: str, **more: Any) -> dict[str, Any]:
    lines = {"axisLine": {"lineStyle": {"color": LINE}}, "splitLine": {"lineStyle": {"color": GRID}}}
    return {"type": kind, "axisLabel": {"color": DIM, "fontSize": 12, "hideOverlap": True}, **lines, **more}


def _base(x: dict[str, Any], y: dict[str, Any], series: list[dict[str, Any]]) -> dict[str, Any]:
    grid = {"left": 4, "right": 12, "top": 12, "bottom": 2, "containLabel": True}
    return {"animation": False, "grid": grid, "xAxis": x, "yAxis": y, "series": series, "textStyle": {"color": TEXT}}


def _limit(*levels: tuple[float, str]) -> dict[str, Any]:
    """Dashed lines at limits."""
    data = [{"yAxis": level, "lineStyle": {"color": colour, "type": "dashed"}} for level, colour in levels]
    return {"silent": True, "symbol": "none", "label": {"show": False}, "data": data}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def fitness(view: View) -> dict[str, Any]:
    """Fitness over generations: every candidate a dot, means with standard errors."""
    means = [(g + 1, mean, 0.0 if math.isnan(error) else error) for g, mean, error in view.means()]
    dots = [[t.generation + 1, _known(t.fitness)] for t in view.trials.values() if not t.probe and not math.isnan(t.fitness)]
    came, planned = max([*(int(d[0] or 0) for d in dots), 1]), view.config.evolution.generations
    last = max(min(planned, max(FEWEST, math.ceil(MORE * came))), came)  # of a long session, what has come and some room
    step = max(1, math.ceil(last / 12))
    x = _axis("value", min=0, max=step * math.ceil((last + 0.5) / step), interval=step, axisTick={"show": False})
    x["axisLabel"] |= {":formatter": "v => v > 0 ? v : ''"}
    x["splitLine"] = {"show": False}
    series = [
        {"type": "scatter", "data": dots, "symbolSize": 6, "itemStyle": {"color": "#3d4853"}, "silent": True},
        {"type": "custom", ":renderItem": WHISKER, "data": [[g, m - e, m + e] for g, m, e in means], "silent": True},
        {"type": "line", "data": [[g, m] for g, m, _ in means], "symbolSize": 7, "color": CALM, "lineStyle": {"width": 2}},
    ]
    ends = [*(d[1] for d in dots if d[1] is not None), *(end for _, m, e in means for end in (m - e, m + e))]
    errors = [t.error for t in view.trials.values() if not math.isnan(t.error)]
    return _base(x, _axis("value", **_round(ends, errors)), series)


def _round(values: list[float], errors: list[float]) -> dict[str, float]:
    """Ends and steps of an axis in round numbers; around few values it is as wide as their errors, so that small differences look small."""
    if not values:
        return {"min": -1, "max": 1, "interval": 1}
    low, high = min(values), max(values)
    least = 2 * sorted(errors)[len(errors) // 2] if errors else 0.2 * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    rough = (high - low) / STEPS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * scale >= rough * (1 - 1e-9)) * scale
    return {"min": round(step * math.floor(low / step), 9), "max": round(step * math.ceil(high / step), 9), "interval": round(step, 9)}


def _recent(view: View) -> tuple[dict[str, Any], list[Any]]:
    """Axis and volumes of the charts of motion."""
    volumes = view.volumes[-VOLUMES:]
    first = volumes[0].index if volumes else 0
    x = _axis("value", min=first, max=max(first + 60, volumes[-1].index if volumes else 0), minInterval=1)
    x["splitLine"] = {"show": False}
    return x, volumes


def displacement(view: View) -> dict[str, Any]:
    """Framewise displacement of the last volumes, with the limits."""
    x, volumes = _recent(view)
    spike = view.config.decoder.spike_mm
    top = max([spike * 1.15, *(v.displacement_mm * 1.1 for v in volumes if not math.isnan(v.displacement_mm))])
    bars = [
        {"value": [v.index, _known(v.displacement_mm)], "itemStyle": {"color": _colour(v.displacement_mm, spike)}}
        for v in volumes
    ]  # fmt: skip
    limits = _limit((FD_LIMIT_MM, AMBER), (spike, RED))
    series = {"type": "bar", "data": bars, "barMinWidth": 2, "barMaxWidth": 4, "silent": True, "markLine": limits}
    return _base(x, _axis("value", min=0, max=round(top, 2)), [series])


def _colour(displacement_mm: float, spike_mm: float) -> str:
    return RED if displacement_mm > spike_mm else AMBER if displacement_mm > FD_LIMIT_MM else "#47606f"


def motion(view: View) -> dict[str, Any]:
    """Translations, and rotations as millimetres on a sphere of 50 mm, of the last volumes; the limit is a voxel."""
    x, volumes = _recent(view)
    far = max([view.voxel_mm, *(abs(m) for v in volumes for m in v.motion_mm if not math.isnan(m))])
    series: list[dict[str, Any]] = [
        {"type": "line", "name": name, "data": [[v.index, _known(v.motion_mm[k])] for v in volumes], "symbol": "none", "color": colour,
         "lineStyle": {"width": 1.5}, "silent": True}
        for k, (name, colour) in enumerate(zip(AXES, COLOURS, strict=True))
    ]  # fmt: skip
    series[0]["markLine"] = _limit((view.voxel_mm, AMBER), (-view.voxel_mm, AMBER))
    options = _base(x, _axis("value", min=-round(1.1 * far, 1), max=round(1.1 * far, 1)), series)
    size = {"itemWidth": 12, "itemHeight": 6, "itemGap": 8, "icon": "rect"}
    options["legend"] = {"top": 0, "right": 4, **size, "textStyle": {"color": DIM, "fontSize": 11}}
    options["grid"]["top"] = 24
    return options
