"""Which code ran."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.gateway.version import VERSION
from holdfast.simulations.running.commit import COMMIT_LENGTH, commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A file that is committed."""
    path = tmp_path / "code.py"
    path.write_text("1\n")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", "code.py")
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    _git(tmp_path, *author, "commit", "--quiet", "--no-verify", "--message", "one")
    return path


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_told_and_whether_files_were_changed_since(code: Path) -> None:
    head = _git(code.parent, "rev-parse", "HEAD")[:COMMIT_LENGTH]
    assert commit(code) == head
    code.write_text("2\n")
    assert commit(code) == f"{head}+"


def test_a_copy_in_another_repository_or_in_none_is_told_by_its_version(code: Path, tmp_path: Path) -> None:
    installed = code.with_name("installed.py")
    installed.write_text("1\n")
    assert commit(installed) == f"version {VERSION}"
    assert commit(tmp_path.parent / "nowhere.py") == f"version {VERSION}"
