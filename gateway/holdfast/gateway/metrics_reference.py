"""Writes `docs/metrics.md` from the families themselves; `python -m holdfast.gateway.reference` calls it.

A test holds the file against this, and other tests hold what processes show against the families.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.actors.metric_families import GATEWAY, NODE, REPLICA
from holdfast.actors.metrics import OTHER, SERIES_MAX, Family, Kind, Section

TARGET = Path("docs/metrics.md")

_SYSTEM_PORT = (
    "on its system port: the first free one from `HOLDFAST_NODE__SYSTEM_PORT_FIRST` (9090) upwards, on "
    "`HOLDFAST_NODE__HOST`. `holdfast status --json` and the log show which it is. `/live` is there too, and "
    "`/health`, which is 503 with the reasons while it can't do its work."
)

SECTIONS: Sequence[tuple[Section, str]] = (
    (
        GATEWAY,
        "`GET /metrics` of each gateway, on the port of its API; `process_*` of prometheus_client are there as well.",
    ),
    (NODE, f"`GET /metrics` of each node, {_SYSTEM_PORT}"),
    (REPLICA, f"`GET /metrics` of each replica, {_SYSTEM_PORT}"),
)

_HEAD = f"""# Metrics

Generated from the code by `python -m holdfast.gateway.reference`; a test keeps it true.

To add a metric: declare its family in `actors/holdfast/actors/metric_families.py`, in its section, and count it where
it happens with the process's ledger (`serving.ledger` in a gateway): `ledger.add(FAMILY, *labels)`,
`ledger.observe(FAMILY, seconds, *labels)`, or once `ledger.read(FAMILY, reader)` for what is read when Prometheus asks.
Then write this page anew.

All is in Prometheus' text format. Names are those that vLLM and Dynamo have after their prefixes, where they have one
for the same thing; units are base units (seconds, tokens, ratios from 0 to 1). Labels never hold what clients choose:
no request ids, no keys, no tenants; `model` is a deployed one. A family counts at most {SERIES_MAX:,} sets of labels,
and what comes beyond that under `{OTHER}`.

For Prometheus, with the first gateway, and a node and its replicas, of `holdfast up`:

```yaml
scrape_configs:
  - job_name: holdfast-gateways
    static_configs:
      - targets: ["127.0.0.1:8000"]
  - job_name: holdfast-system-ports
    static_configs:
      - targets: ["127.0.0.1:9090", "127.0.0.1:9091", "127.0.0.1:9092"]
```
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section, where in SECTIONS:
        parts.append(f"## {section.title}\n\n{where}\n")
        parts.append("| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |")
        parts += [_row(family) for family in section.families]
        parts.append(_alerts(section))
    return "\n".join(parts).rstrip() + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    text = family.text.replace("|", "\\|")
    return f"| `{family.shown}` | {family.kind} | {family.unit} | {labels} | {text} |"


def _alerts(section: Section) -> str:
    """Example alerts, and the histograms' buckets."""
    lines = ["", f"### {section.title}: examples of alerts", "", "| when | |", "| --- | --- |"]
    lines += [f"| `{family.alert}` | {_first(family.text)} |" for family in section.families if family.alert]
    buckets = [family for family in section.families if family.kind is Kind.HISTOGRAM]
    if buckets:
        lines += ["", "Buckets end at (seconds):", ""]
        lines += [f"- `{family.name}`: {', '.join(f'{bound:g}' for bound in family.bounds)}" for family in buckets]
    return "\n".join(lines) + "\n"


def _first(text: str) -> str:
    """The text's first clause."""
    for end in (": ", "; ", ", by "):
        text = text.split(end)[0]
    return text.rstrip(".")
