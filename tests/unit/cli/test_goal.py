"""What `holdfast up` asks for, from options and from what the log says."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.errors import InvalidConfig, Misuse
from holdfast.gateway.goal import Wish, application_for, model_name

EARLIER = ApplicationConfig(
    "default", [DeploymentConfig("mock", EngineConfig("mock", {"itl_ms": 5}), 3, max_ongoing_requests=7)]
)


def model_directory(folder: Path, name: str = "My Llama_3.2") -> Path:
    directory = folder / name
    directory.mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (directory / file).touch()
    return directory


def test_without_options_it_is_two_replicas_of_the_shipped_model() -> None:
    application = application_for(Wish(), None)
    (deployment,) = application.deployments
    assert (application.name, deployment.name, deployment.num_replicas) == ("default", "holdfast-tiny", 2)
    assert deployment.engine.kind == "torch"


def test_without_options_what_the_log_says_stays() -> None:
    assert application_for(Wish(), EARLIER) is EARLIER


def test_options_change_only_what_they_name() -> None:
    more = application_for(Wish(replicas=5), EARLIER).deployments[0]
    assert (more.num_replicas, more.engine, more.max_ongoing_requests) == (5, EARLIER.deployments[0].engine, 7)
    slower = application_for(Wish(engine_args='{"itl_ms": 9}'), EARLIER).deployments[0]
    assert (slower.num_replicas, slower.engine.arguments) == (3, {"itl_ms": 9})
    plain = application_for(Wish(engine="mock"), EARLIER).deployments[0]
    assert (plain.num_replicas, plain.engine.arguments) == (3, {})


def test_a_model_directory_is_served_under_its_own_name(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    deployment = application_for(Wish(model=directory, engine_args='{"threads": 2}'), EARLIER).deployments[0]
    assert deployment.name == "my-llama-3-2"
    assert deployment.engine == EngineConfig("torch", {"model": str(directory), "threads": 2})
    threads = Wish(engine_args='{"threads": 4}')
    again = application_for(threads, ApplicationConfig("default", [deployment])).deployments[0]
    assert again.engine.arguments == {"model": str(directory), "threads": 4}


def test_a_directory_that_can_name_no_model_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        model_name(Path("/models/___"))
    assert len(model_name(Path("/models") / ("a" * 100))) == 63


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(engine="mock", engine_args="[1]"), "--engine-args"),
        (Wish(engine="mock", engine_args='{"nonsense": 1}'), "nonsense"),
        (Wish(engine="torch", engine_args='{"threads": 0}'), "threads"),
        (Wish(engine="torch", engine_args='{"model": "x"}'), "--model"),
        (Wish(engine="mock", model=Path("x")), "--model"),
        (Wish(model=Path("/nowhere/at-all")), "does not exist"),
    ],
)
def test_what_can_not_start_is_refused(wish: Wish, words: str) -> None:
    with pytest.raises(Misuse, match=words):
        application_for(wish, None)


def test_a_directory_without_a_models_files_is_refused_by_their_names(tmp_path: Path) -> None:
    directory = model_directory(tmp_path)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(Misuse, match=r"lacks tokenizer\.json"):
        application_for(Wish(model=directory), None)


def test_torch_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.gateway.goal.TORCH_PACKAGES", ("torch", "no_such_package_here"))
    with pytest.raises(Misuse, match=r"no_such_package_here: pip install 'holdfast\[torch\]'"):
        application_for(Wish(), None)


def test_what_the_log_says_is_refused_when_it_can_not_run_here_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = model_directory(tmp_path)
    earlier = application_for(Wish(model=directory), None)
    assert application_for(Wish(), earlier) is earlier
    monkeypatch.setattr("holdfast.gateway.goal.TORCH_PACKAGES", ("no_such_package_here",))
    with pytest.raises(Misuse, match="no_such_package_here"):
        application_for(Wish(), earlier)
    monkeypatch.undo()
    (directory / "config.json").unlink()
    with pytest.raises(Misuse, match=r"lacks config\.json"):
        application_for(Wish(), earlier)
