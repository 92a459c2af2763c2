"""Thresholds that are set at run time: what was asked for is decided, once and whole, and nobody is told so before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from holdfast.core import events as ev
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import ThresholdChange

THRESHOLDS: Final = "thresholds"

Values = dict[str, Any]


def thresholds(history: History, judged: Judged) -> list[Violation]:
    """A decision changes what its request asked for, and nothing else; each request has one at most. Who was told that
    a change holds finds its decision in the log.
    """
    walk = _Walk()
    log = final_log(history)
    effective = {place for place, _record in log.effective()}
    found: list[Violation] = []
    for place, record in enumerate(log.records):
        if place in effective or isinstance(record.event.payload, ev.BusyThresholdRequested):
            judged["decisions"] += isinstance(record.event.payload, ev.BusyThresholdSet)
            found += walk.step(record.event, log.times[place])
    judged["changes told"] += len(history.threshold_changes)
    return [*found, *_told(history, walk)]


class _Walk:
    """The log, read by nothing but what its events say. `decided`: (when, which model, the changes) of each request."""

    def __init__(self) -> None:
        self.decided: dict[str, tuple[float, str, Values]] = {}
        self._asked: dict[str, tuple[str, Values]] = {}
        self._configured: dict[str, Values] = {}
        self._held: dict[str, Values] = {}

    def step(self, event: ev.Event, at_s: float) -> Iterator[Violation]:
        """Take an event in; what is wrong with it."""
        match event.payload:
            case ev.BusyThresholdRequested(model=model, changes=changes):
                self._asked[event.id] = (model, msgspec.to_builtins(changes))
            case ev.ApplicationDeployed(application=application):
                self._deployed({one.name: msgspec.to_builtins(one.thresholds) for one in application.deployments})
            case ev.ApplicationDeleted():
                self._deployed({})
            case ev.BusyThresholdSet(model=model, thresholds=values):
                yield from self._set(event.cause or "", model, msgspec.to_builtins(values), at_s)

    def _deployed(self, configured: dict[str, Values]) -> None:
        """Runs have one application. What was set lasts while the configured thresholds stay what they are."""
        lasting = {model for model, values in configured.items() if self._configured.get(model) == values}
        self._held = {model: values for model, values in self._held.items() if model in lasting}
        self._configured = configured

    def _set(self, cause: str, model: str, values: Values, at_s: float) -> Iterator[Violation]:
        if cause not in self._asked or self._asked[cause][0] != model:
            yield Violation(THRESHOLDS, at_s, f"thresholds of {model} were set, and nobody had asked for it")
            return
        if cause in self.decided:
            yield Violation(THRESHOLDS, at_s, f"the thresholds that {cause} asks for were set a second time")
        changes = self._asked[cause][1]
        self.decided[cause] = (at_s, model, changes)
        if model in self._configured:
            wanted = {**dict.fromkeys(values), **self._held.get(model, {}), **changes}
            if values != wanted:
                yield Violation(THRESHOLDS, at_s, f"{cause} asks for {changes} of {model}: {values}, not {wanted}")
            self._held[model] = values


def _told(history: History, walk: _Walk) -> Iterator[Violation]:
    for change in history.threshold_changes:
        if not any(_is_of(change, *decided) for decided in walk.decided.values()):
            what = f"{change.threshold} of {change.model} is {change.value}"
            yield Violation(THRESHOLDS, change.at_s, f"an operator was told that {what}, and nobody had decided it")


def _is_of(change: ThresholdChange, at_s: float, model: str, changes: Values) -> bool:
    return at_s <= change.at_s and model == change.model and changes == {change.threshold: change.value}
