"""The configuration reference says what the code says."""

from pathlib import Path

from holdfast.gateway.reference import TARGET, reference

ROOT = Path(__file__).parents[2]


def test_the_configuration_reference_is_up_to_date() -> None:
    assert (ROOT / TARGET).read_text() == reference(), "run `python -m holdfast.gateway.reference`"


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `HOLDFAST_")]
    assert len(rows) > 50
    assert all(line.rstrip("| ").split("|")[-1].strip() for line in rows)
