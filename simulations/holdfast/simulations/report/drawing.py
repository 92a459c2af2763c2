"""Lanes as SVG.

Horizontal places are in per cent, so that the drawing can be stretched without stretching its words.
"""

from __future__ import annotations

from html import escape
from typing import Final

from holdfast.core import events as ev
from holdfast.simulations.checkers.folding import FinalLog
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.records import Settle
from holdfast.simulations.report.lanes import Lane, Mark, Section

LANE_PX: Final = 18
SLIM_PX: Final = 9
GAP_PX: Final = 3
UNDERLINE_PX: Final = 4
TITLE_PX: Final = 26
AXIS_PX: Final = 24
CHART_PX: Final = 64
BINS: Final = 120
"""The log's rate is counted in so many parts of the run."""

LABELS_PX: Final = 132

TICKS_MAX: Final = 14
_STEPS_S: Final = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1_800)
"""The time axis has at most so many ticks, at these distances in seconds."""

_SIGNS: Final = {
    "death": '<path d="M-4-4L4 4M4-4L-4 4"/>',
    "end": '<path d="M0-6V6"/>',
    "expiry": '<path d="M-4-4L4 4M4-4L-4 4"/>',
    "moved": '<path d="M0-5V5"/>',
    "resumed": '<path d="M0-4L4 0L0 4L-4 0Z"/>',
    "again": '<path d="M0-4L4 0L0 4L-4 0Z"/>',
    "decision": '<path d="M0-7V7"/>',
    "outcome": '<circle r="3.5"/>',
}
"""How signs are drawn, around the point where they stand."""

_PATTERN: Final = (
    '<defs><pattern id="still" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="still-ground"/><rect width="3" height="6" class="still-bars"/></pattern></defs>'
)


def element(name: str, inner: str = "", /, **attributes: object) -> str:
    """An element of the page. `_` in an attribute's name stands for `-`, and is dropped at the end of `class_`."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name}{told}>{inner}</{name}>"


class Drawing:
    """Two drawings of the same height: names at the left, which stay, and what happened, which may be wider."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._names: list[str] = []
        self._parts: list[str] = []
        self._height = AXIS_PX
        self._axis(AXIS_PX - 8)

    def section(self, section: Section) -> None:
        """A title, and the lanes below it."""
        self._title(section.title)
        for lane in section.lanes:
            self._lane(lane)

    def log_rate(self, log: FinalLog) -> None:
        """How many events the log took in, decisions and facts, as bars."""
        counts = _binned(log, self._span_s)
        most = max((sum(pair) for pair in counts), default=0)
        if not most:
            return
        self._title("Log")
        bottom, each_s = float(self._height + CHART_PX), self._span_s / BINS
        for number, (decisions, facts) in enumerate(counts):
            top = bottom
            tip = f"{number * each_s:.1f} to {(number + 1) * each_s:.1f} s\n{decisions} decisions\n{facts} facts"
            where = {"x": f"{number * 100 / BINS:.3f}%", "width": f"{86 / BINS:.3f}%", "data_tip": tip}
            for count, look in ((decisions, "decisions"), (facts, "facts")):
                height = CHART_PX * count / most
                top -= height
                if count:
                    self._put("rect", class_=look, y=f"{top:.1f}", height=f"{height:.1f}", **where)
        self._name(f"{most} in {each_s:.2g} s", self._height + 10)
        self._name("decisions, facts", bottom - 2)
        self._height += CHART_PX + GAP_PX

    def settling(self, settle: Settle, reached_s: float | None) -> None:
        """Behind all else: the time in which the goal has to be reached, and when it was."""
        tip = f"no more faults from {settle.began_s:.3f} s on; the goal is due within {settle.bound_s:g} s"
        if settle.core:
            tip += f"\nfor the healthy core: {', '.join(settle.core)}"
        extent = self._extent(settle.began_s, settle.began_s + settle.bound_s)
        behind = [element("rect", class_="settling", y=AXIS_PX, height=self._height - AXIS_PX, data_tip=tip, **extent)]
        if reached_s is not None:
            behind.append(self._line(reached_s, "reached", f"the goal is reached for good at {reached_s:.3f} s"))
        self._parts[:0] = behind

    def violations(self, violations: list[Violation]) -> None:
        """Before all else: a line where each invariant was broken."""
        for violation in violations:
            tip = f"{violation.checker}: {violation.message}"
            self._parts.append(self._line(violation.at_s, "violation", tip))
            flag = '<path d="M-5-6H5L0 3Z"/>'
            self._put(
                "svg", flag, class_="flag", x=self._x(violation.at_s), y=AXIS_PX, overflow="visible", data_tip=tip
            )

    def html(self) -> str:
        """Both drawings, in the frame in which they stand and scroll."""
        self._axis(self._height + 16)
        height = self._height + AXIS_PX
        names = element("svg", "".join(self._names), class_="names", width=LABELS_PX, height=height)
        inner = _PATTERN + "".join(self._parts)
        lanes = element("svg", inner, id="lanes", data_span=self._span_s, width="100%", height=height)
        scrolled = element("div", lanes + element("div", id="cross"), class_="scroll")
        return element("div", names + scrolled, class_="timeline")

    # --- parts ------------------------------------------------------------------------------------------

    def _x(self, at_s: float) -> str:
        return f"{100 * min(max(at_s, 0.0), self._span_s) / self._span_s:.3f}%"

    def _extent(self, from_s: float, until_s: float) -> dict[str, str]:
        width = max(min(until_s, self._span_s) - from_s, 0.0) / self._span_s
        return {"x": self._x(from_s), "width": f"{100 * width:.3f}%"}

    def _put(self, name: str, inner: str = "", /, **attributes: object) -> None:
        self._parts.append(element(name, inner, **attributes))

    def _line(self, at_s: float, look: str, tip: str) -> str:
        x = self._x(at_s)
        return element("line", class_=look, x1=x, x2=x, y1=AXIS_PX, y2=self._height, data_tip=tip)

    def _axis(self, y: int) -> None:
        step_s = next((step for step in _STEPS_S if self._span_s / step <= TICKS_MAX), _STEPS_S[-1])
        for number in range(int(self._span_s // step_s) + 1):
            at_s = number * step_s
            anchor = "start" if number == 0 else "end" if at_s > self._span_s * 0.985 else "middle"
            self._put("text", f"{at_s} s", class_="axis", x=self._x(at_s), y=y, text_anchor=anchor)

    def _title(self, title: str) -> None:
        self._names.append(element("text", escape(title), class_="title", x=0, y=self._height + 17))
        y = self._height + 6
        self._put("line", class_="rule", x1=0, x2="100%", y1=y, y2=y)
        self._height += TITLE_PX

    def _name(self, name: str, y: float, *, slim: bool = False) -> None:
        look = "name slim" if slim else "name"
        self._names.append(element("text", escape(name), class_=look, x=LABELS_PX - 8, y=f"{y:g}", text_anchor="end"))

    def _lane(self, lane: Lane) -> None:
        height = SLIM_PX if lane.slim else LANE_PX
        self._name(lane.label, self._height + height - (1 if lane.slim else 5), slim=lane.slim)
        for mark in lane.marks:
            self._mark(mark, height)
        self._height += height + (1 if lane.slim else GAP_PX)

    def _mark(self, mark: Mark, height: int) -> None:
        if mark.until_s is None:
            sign = _SIGNS[mark.look.partition(" ")[0]]
            where = {"x": self._x(mark.from_s), "y": f"{self._height + height / 2:g}", "overflow": "visible"}
            self._put("svg", sign, class_=f"sign {mark.look}", data_tip=mark.tip, **where)
            return
        y = self._height
        if mark.look == "suspected":
            y, height = y + height - UNDERLINE_PX, UNDERLINE_PX
        inner = '<rect width="100%" height="100%" rx="2"/>'
        if mark.label:
            inner += element("text", escape(mark.label), x=4, y=height - 5)
        shown = {"overflow": "visible"} if mark.free else {}
        extent = self._extent(mark.from_s, mark.until_s)
        self._put("svg", inner, class_=f"bar {mark.look}", y=y, height=height, data_tip=mark.tip, **extent, **shown)


def _binned(log: FinalLog, span_s: float) -> list[list[int]]:
    """For each part of the run, how many decisions and how many facts were appended."""
    counts = [[0, 0] for _ in range(BINS)]
    for entry, record in zip(log.entries, log.records, strict=False):
        place = min(BINS - 1, int(BINS * entry.at_s / span_s))
        counts[place][not isinstance(record.event.payload, ev.Decision)] += 1
    return counts
