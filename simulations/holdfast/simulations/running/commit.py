"""Which code ran: half of what names a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

GIT_LIMIT_S = 10.0
COMMIT_LENGTH = 12


def commit(path: Path = Path(__file__)) -> str:
    """The commit that the code is of, `+` at its end when files were changed since; else the version of Holdfast."""
    from holdfast.gateway.version import VERSION

    # A copy in somebody's virtual environment may lie in a repository, but that one is not ours.
    if _git(path, "ls-files", "--error-unmatch", path.name) is None:
        return f"version {VERSION}"
    found = _git(path, "rev-parse", f"--short={COMMIT_LENGTH}", "HEAD")
    if not found:
        return f"version {VERSION}"
    return f"{found}+" if _git(path, "status", "--porcelain", "--untracked-files=no") else found


def _git(path: Path, *arguments: str) -> str | None:
    """What git says, None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=path.parent, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
