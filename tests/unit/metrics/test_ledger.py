"""What a ledger shows, how much it can grow, and that the page of metrics says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from holdfast.actors.metrics import OTHER, SERIES_MAX, Ledger, Section
from holdfast.gateway.metrics_reference import SECTIONS, TARGET, reference

ROOT = Path(__file__).parents[3]


def section() -> Section:
    return Section("Things")


def test_every_family_of_the_section_is_shown_even_before_anything_happened() -> None:
    things = section()
    things.counter("holdfast_things", "Things.", "kind")
    things.gauge("holdfast_level", "Level.")
    things.histogram("holdfast_wait_seconds", "Wait.", bounds=(0.1, 1.0))
    shown = {family.name: family for family in text_string_to_metric_families(Ledger(things).text().decode())}
    assert set(shown) == {"holdfast_things", "holdfast_level", "holdfast_wait_seconds"}
    assert {family.type for family in shown.values()} == {"counter", "gauge", "histogram"}


def test_what_is_added_observed_and_read_is_shown_by_labels() -> None:
    things = section()
    counter = things.counter("holdfast_things", "Things.", "kind")
    gauge = things.gauge("holdfast_level", "Level.", "where")
    wait = things.histogram("holdfast_wait_seconds", "Wait.", bounds=(0.1, 1.0))
    ledger = Ledger(things)
    ledger.add(counter, "big")
    ledger.add(counter, "big", by=2)
    ledger.observe(wait, 0.5)
    ledger.observe(wait, 3.0)
    ledger.read(gauge, lambda: [(("here",), 7)])
    lines = ledger.text().decode().splitlines()
    assert 'holdfast_things_total{kind="big"} 3.0' in lines
    assert 'holdfast_level{where="here"} 7.0' in lines
    assert 'holdfast_wait_seconds_bucket{le="0.1"} 0.0' in lines
    assert 'holdfast_wait_seconds_bucket{le="1.0"} 1.0' in lines
    assert "holdfast_wait_seconds_count 2.0" in lines
    assert "holdfast_wait_seconds_sum 3.5" in lines


def test_beyond_the_bound_further_labels_are_counted_together_and_known_ones_go_on() -> None:
    things = section()
    counter = things.counter("holdfast_things", "Things.", "kind", "size")
    wait = things.histogram("holdfast_wait_seconds", "Wait.", "kind", bounds=(1.0,))
    ledger = Ledger(things)
    for number in range(SERIES_MAX + 50):
        ledger.add(counter, str(number), "s")
        ledger.observe(wait, 0.5, str(number))
    ledger.add(counter, "0", "s")
    assert ledger.value(counter, OTHER, OTHER) == 50
    assert ledger.value(counter, "0", "s") == 2
    assert ledger.histogram(wait, "new").count == 50
    shown = ledger.text().decode()
    assert len(re.findall("^holdfast_things_total", shown, re.MULTILINE)) == SERIES_MAX + 1
    assert len(re.findall("^holdfast_wait_seconds_count", shown, re.MULTILINE)) == SERIES_MAX + 1


def test_a_ledger_refuses_wrong_labels_and_names_that_are_taken() -> None:
    things = section()
    counter = things.counter("holdfast_things", "Things.", "kind")
    with pytest.raises(AssertionError, match="twice"):
        things.gauge("holdfast_things", "Again.")
    with pytest.raises(AssertionError, match="labels"):
        Ledger(things).add(counter, "a", "b")


def test_the_page_of_metrics_is_up_to_date() -> None:
    assert (ROOT / TARGET).read_text() == reference(), "run `python -m holdfast.gateway.reference`"


def test_every_metric_has_a_meaning_and_alerts_are_about_metrics_that_exist() -> None:
    families = [family for part, _where in SECTIONS for family in part.families]
    names = {family.shown for family in families} | {f"{family.name}_bucket" for family in families if family.bounds}
    for family in families:
        assert family.text.endswith("."), family.name
        assert family.name.startswith("holdfast_")
        assert set(re.findall(r"holdfast_\w+", family.alert)) <= names, family.name
        assert family.unit not in ("seconds", "ratio") or family.name.endswith(f"_{family.unit}"), family.name
