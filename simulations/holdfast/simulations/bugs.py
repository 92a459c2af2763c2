"""Bugs that the simulation found, by name: for each the smallest run that showed it, as a plan of its own.

A seed draws other faults and other work as soon as anything that is drawn changes. A plan keeps them; the order of
turns, and the network's pace, still follow from the code.

To keep one: at the commit before the one that mends it, `holdfast sim shrink SEED --save bugs/NAME.json`; then say in
the file what was wrong (`what`) and how it was mended (`fixed`). The tests run every plan that is kept.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from holdfast.core.errors import Misuse
from holdfast.simulations.plan import Knobs, Plan
from holdfast.simulations.work.items import DEPLOY, OPERATIONS, Operation

FOLDER = Path(__file__).with_name("bugs")
SUFFIX = ".json"


class Bug(msgspec.Struct, frozen=True):
    """A run that failed. `seed` and `commit` are where it was found, `checker` the invariant that it broke.

    `what` says what was wrong, `fixed` how it was mended; both are for people.
    """

    name: str
    checker: str
    what: str
    fixed: str
    commit: str
    seed: int
    plan: Plan


class NoSuchBug(Misuse):
    """No file of that name holds the plan of a bug."""


def names(folder: Path = FOLDER) -> list[str]:
    """The bugs that there are, in order."""
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))


def load(name: str, folder: Path = FOLDER) -> Bug:
    """A bug by its name, or from any file when the name is the path of one. Raises `NoSuchBug`."""
    path = Path(name) if name.endswith(SUFFIX) else folder / f"{name}{SUFFIX}"
    try:
        data = path.read_bytes()
    except OSError as error:
        known = ", ".join(names(folder)) or "none"
        raise NoSuchBug(
            f"{name} is no seed, and no bug: {error.strerror}: {path}; bugs that have a name: {known}"
        ) from error
    try:
        bug = msgspec.json.decode(data, type=Bug)
    except msgspec.DecodeError as error:
        raise NoSuchBug(f"{path} does not hold a plan as this version of Holdfast has it: {error}") from error
    if unknown := _unknown(bug.plan, data):
        raise NoSuchBug(f"{path} does not hold a plan as this version of Holdfast has it: there is no {unknown}")
    return bug


def _unknown(plan: Plan, data: bytes) -> str:
    """What a plan, as it was read, asks for that does not exist (any more); empty for nothing.

    A run without it would be another one, and the bug would seem to be mended.
    """
    from holdfast.simulations.faults.kinds import KINDS

    asked = {
        "kind of fault": ({fault.kind for fault in plan.faults}, set(KINDS)),
        "operation": ({item.kind for item in plan.work if isinstance(item, Operation)}, {DEPLOY, *OPERATIONS}),
        "setting": (set(msgspec.json.decode(data)["plan"]["knobs"]), set(Knobs.__struct_fields__)),
    }
    return ", ".join(f"{what} {name!r}" for what, (wanted, known) in asked.items() for name in sorted(wanted - known))


def save(bug: Bug, path: Path) -> None:
    """Write a bug to a file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(bug), indent=1) + b"\n")
