"""The page of a run: whole, on its own, and with everything where it belongs."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import msgspec

from holdfast.actors.identity import Identity
from holdfast.core import events as ev
from holdfast.simulations.checkers import Violation, check_all
from holdfast.simulations.history import History
from holdfast.simulations.records import ERROR, SERVER, Attempt
from holdfast.simulations.report import render
from holdfast.simulations.report.lanes import Mark, packed, sections
from tests.unit.simulations.recorded import Run, answered, asked, well

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outcome(msgspec.Struct):
    seed: int = 42
    scenario: str = "standard"
    trace: str = "ab" * 32
    violations: list[Violation] = []


class Page(HTMLParser):
    """Elements with their attributes; fails where tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def marks(self, look: str) -> list[dict[str, str | None]]:
        """The attributes of all marks in the drawing that look like this."""
        drawn = [attributes for tag, attributes in self.found if tag in ("svg", "rect", "line")]
        return [attributes for attributes in drawn if look in (attributes.get("class") or "").split()]

    def tips(self) -> str:
        """All details."""
        return "\n".join(attributes.get("data-tip") or "" for _, attributes in self.found)


def page(run: Run, *violations: Violation) -> Page:
    return Page(render(run.history, Outcome(violations=list(violations))))


def test_a_run_of_nothing_is_a_page_too() -> None:
    assert page_of(History()).marks("bar") == []


def page_of(history: History) -> Page:
    return Page(render(history, Outcome()))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    run = well()
    drawn = page(run)
    assert not [tag for tag, attributes in drawn.found if {"src", "href"} & attributes.keys()]
    assert "url(http" not in render(run.history, Outcome())


def test_everybody_and_everything_has_a_place() -> None:
    run = well()
    run.history.process_began(0.0, "nats-1", SERVER, "host-nats-1", 900)
    run.history.fault(12.0, "partition", "node-1>nats-1", "both ways", 14.0)
    run.history.fault(15.0, "kill", "gateway-1", until_s=15.0)
    run.history.term_began(1.1, "node-1", "i1", 10)
    tips = page(run).tips()
    for name in ("node-1", "node-2", "gateway-1", "app.tiny.1", "app.tiny.2", "nats-1", "partition", "kill"):
        assert name in tips
    assert "request 2: completion, 5 tokens asked for" in tips
    titles = [section.title for section in sections(run.history)]
    assert titles == ["Faults", "Leaders", "Leases", "Nodes and their replicas", "Gateways", "Servers", "Requests"]


def test_marks_stand_at_their_part_of_the_run() -> None:
    run = well()
    run.history.fault(15.0, "partition", "node-1", until_s=22.5)
    fault = page(run).marks("fault")[0]
    assert (fault["x"], fault["width"]) == ("50.000%", "25.000%")


def test_what_lasts_goes_on_to_the_end() -> None:
    run = well()
    run.history.fault(15.0, "partition", "node-1")
    run.processes["node-2"].froze(27.0)
    drawn = page(run)
    assert drawn.marks("fault")[0]["width"] == "50.000%"
    assert drawn.marks("frozen")[0]["width"] == "10.000%"


def test_ends_of_processes_and_their_suspicions_are_marked() -> None:
    run = well()
    run.processes["app.tiny.1"].ended(20.0, -9, "fault")
    run.processes["app.tiny.2"].told(20.0, 3.0)
    run.processes["app.tiny.2"].ended(21.0, 0, "node-2")
    run.at_s = 13.0
    run.fact(ev.ReplicaSuspected("gateway-1", "app.tiny.1", 0.5, 1, "silent"), "gateway.gateway-1")
    run.at_s = 16.0
    run.fact(ev.ReplicaTrusted("gateway-1", "app.tiny.1", 3.0), "gateway.gateway-1")
    drawn = page(run)
    assert [mark["x"] for mark in drawn.marks("death")] == ["66.667%"]
    assert [mark["x"] for mark in drawn.marks("end")] == ["70.000%"]
    assert [mark["width"] for mark in drawn.marks("draining")] == ["3.333%"]
    assert [mark["width"] for mark in drawn.marks("suspected")] == ["10.000%"]


def test_a_suspicion_ends_with_its_replica_however_the_log_hears_of_that() -> None:
    run = well()
    run.at_s = 12.0
    for number in (1, 2):
        run.fact(ev.ReplicaSuspected("gateway-1", f"app.tiny.{number}", 0.5, 1, "silent"), "gateway.gateway-1")
    run.at_s = 15.0
    run.decide(ev.NodeLost("node-1", "i1", "its lease expired"))
    assert {mark["width"] for mark in page(run).marks("suspected")} == {"10.000%", "60.000%"}


def test_leases_last_until_they_expire_and_with_them_their_keys() -> None:
    run = well()
    run.history.lease_event(3.0, "put", 8, "/holdfast/c/nodes/node-2/i1", 11, "node-2")
    run.history.lease_event(18.0, "expired", 8)
    drawn = page(run)
    assert [mark["x"] for mark in drawn.marks("expiry")] == ["60.000%"]
    assert [mark["width"] for mark in drawn.marks("expired")] == ["50.000%"]


def test_streams_show_where_they_moved_and_how_they_ended() -> None:
    run = well()
    request = answered(9, upto=3)
    request.attempts += [Attempt(3.1, "app.tiny.1", 0), Attempt(6.0, "app.tiny.2", 2)]
    request.sent(9.0, "gateway-2", f"{request.response_id}:3")
    request.ended(12.0, ERROR, "stream_lost", 0)
    run.history.request(request)
    drawn = page(run)
    assert [mark["x"] for mark in drawn.marks("moved")] == ["20.000%"]
    assert [mark["x"] for mark in drawn.marks("resumed")] == ["30.000%"]
    assert len(drawn.marks("outcome")) == 4
    assert [mark["x"] for mark in drawn.marks("error") if "outcome" in (mark["class"] or "")] == ["40.000%"]
    assert "moved to app.tiny.2, after 2 tokens" in drawn.tips()


def test_the_first_attempt_of_each_choice_is_no_move() -> None:
    run = well()
    request = answered(9, n=2)
    request.attempts += [Attempt(3.1, "app.tiny.1", 0), Attempt(3.1, "app.tiny.2", 0), Attempt(6.0, "app.tiny.2", 2)]
    run.history.request(request)
    assert [mark["x"] for mark in page(run).marks("moved")] == ["20.000%"]


def test_the_leader_key_tells_who_holds_it() -> None:
    run = well()
    value = Identity("c", "node", "node-2", "i1", "host", 102).lease_value()
    run.history.lease_event(3.0, "created", 8, "/holdfast/c/leader", 11, base64.b64encode(value).decode())
    leader = next(section for section in sections(run.history) if section.title == "Leases").lanes[0]
    assert [(mark.label, mark.from_s, mark.until_s) for mark in leader.marks] == [
        ("node-1", 0.5, 3.0),
        ("node-2", 3.0, 30.0),
    ]


def test_violations_are_marked_and_told() -> None:
    run = well()
    run.decide(ev.ApplicationDeleted("app"))
    violations = check_all(run.history)
    drawn = page(run, *violations)
    assert len(drawn.marks("violation")) == len(violations) > 0
    assert "nobody wants it" in render(run.history, Outcome(violations=violations))
    assert page(well()).marks("violation") == []


def test_the_time_to_settle_and_the_goal_are_marked() -> None:
    drawn = page(well())
    assert drawn.marks("settling")[0]["width"] == "16.667%"
    assert drawn.marks("reached")[0]["x1"] == "40.000%"


def test_words_from_the_run_are_never_taken_for_markup() -> None:
    run = well()
    run.history.fault(3.0, '<script>"x"</script>', "a'b&c", "<b>", 4.0)
    request = asked(9)
    request.ended(4.0, ERROR, "<i>", 503)
    run.history.request(request)
    text = render(run.history, Outcome(scenario="<u>", violations=[Violation("<em>", 1.0, "<s>")]))
    assert not re.search(r"<(script>\"|b>\W*<|i>|u>|em>|s>)", text.replace("<script>const", ""))
    assert '<script>"x"</script>\na\'b&c' in Page(text).tips()


def test_marks_that_would_overlap_get_lanes_of_their_own() -> None:
    marks = [Mark(0.0, 5.0, "fault", "a"), Mark(4.0, 8.0, "fault", "b"), Mark(6.0, 7.0, "fault", "c")]
    lanes = list(packed("faults", marks, 60.0))
    assert [[mark.tip for mark in lane.marks] for lane in lanes] == [["a", "c"], ["b"]]
    assert [lane.label for lane in lanes] == ["faults", ""]
