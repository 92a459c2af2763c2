"""What `holdfast up` asks the cluster for: one application of one model, from options and from what the log says.

Options that are not given keep what the log says, so that `holdfast up` after a crash continues as it was.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec

from holdfast.actors.engines.user_class import IMPORT_PATH, check_found
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig, check_import_path
from holdfast.core.errors import InvalidConfig, Misuse
from holdfast.gateway.settings import default_model_directory, parse_json_object

APPLICATION = "default"
SHIPPED_MODEL_NAME = "holdfast-tiny"
REPLICAS_DEFAULT = 2
TORCH_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "jinja2")
NAME_CHARS_MAX = 63

EngineKind = Literal["torch", "mock", "class"]


class Wish(msgspec.Struct, frozen=True):
    """What the command line says about the application; None where it says nothing."""

    replicas: int | None = None
    engine: EngineKind | None = None
    engine_args: str | None = None
    deployment_args: str | None = None
    model: Path | None = None

    @property
    def names_engine(self) -> bool:
        """Whether the engine follows from the options alone."""
        return self.engine is not None or self.model is not None


def application_for(wish: Wish, before: ApplicationConfig | None) -> ApplicationConfig:
    """The application to deploy. Raises `InvalidConfig`, `Misuse`."""
    earlier = before.deployments[0] if before is not None and len(before.deployments) == 1 else None
    if before is not None and wish == Wish():
        for deployment in before.deployments:
            check_engine(deployment.engine, deployment.name)
        return before
    name, engine = _engine(wish, earlier)
    check_engine(engine, name)
    replicas = wish.replicas
    if replicas is None:
        replicas = earlier.num_replicas if earlier else REPLICAS_DEFAULT
    deployment = DeploymentConfig(name, engine, replicas)
    if earlier is not None and earlier.name == name:
        deployment = msgspec.structs.replace(earlier, engine=engine, num_replicas=replicas)
    return ApplicationConfig(APPLICATION, [_with_settings(deployment, wish.deployment_args)])


def _with_settings(deployment: DeploymentConfig, text: str | None) -> DeploymentConfig:
    """The deployment with these settings of its own. Raises `InvalidConfig`."""
    if text is None:
        return deployment
    given = parse_json_object("--deployment-args", text)
    for name, option in {"name": "--model", "engine": "--engine", "num_replicas": "--replicas"}.items():
        if name in given:
            raise InvalidConfig(f"--deployment-args: {name} is given by {option}")
    try:
        return msgspec.convert({**msgspec.to_builtins(deployment), **given}, DeploymentConfig)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"--deployment-args: {error}") from error


def _engine(wish: Wish, earlier: DeploymentConfig | None) -> tuple[str, EngineConfig]:
    """The model's name and its engine."""
    arguments = parse_json_object("--engine-args", wish.engine_args) if wish.engine_args is not None else None
    if not wish.names_engine and earlier is not None:
        if arguments is None:
            return earlier.name, earlier.engine
        told_by = {"torch": ["model"], "class": [IMPORT_PATH], "mock": []}[earlier.engine.kind]
        kept = {name: earlier.engine.arguments[name] for name in told_by}
        return earlier.name, EngineConfig(earlier.engine.kind, kept | arguments)
    if wish.engine == "mock":
        if wish.model is not None:
            raise Misuse("--model is for --engine torch: the mock engine has no model")
        return "mock", EngineConfig("mock", arguments or {})
    if wish.engine == "class":
        if wish.model is not None:
            raise Misuse("--model is for --engine torch: tell your class of it in --engine-args")
        path = check_import_path(arguments or {})
        return model_name(Path(path.partition(":")[2])), EngineConfig("class", arguments or {})
    return _torch(wish.model, arguments or {})


def _torch(model: Path | None, arguments: dict[str, Any]) -> tuple[str, EngineConfig]:
    if "model" in arguments or "model_name" in arguments:
        raise InvalidConfig("--engine-args: give the model's directory with --model; its name follows from it")
    directory = (model or default_model_directory()).absolute()
    name = SHIPPED_MODEL_NAME if model is None else model_name(directory)
    return name, EngineConfig("torch", {"model": str(directory), **arguments})


def model_name(directory: Path) -> str:
    """The name that a model directory is served under: its own, in lower case, other characters as dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", directory.name.lower()).strip("-")[:NAME_CHARS_MAX].strip("-")
    if not slug:
        raise InvalidConfig(f"--model {directory}: the directory's name has no letter or digit to name the model by")
    return slug


def check_engine(engine: EngineConfig, name: str) -> None:
    """Whether replicas could start with it here, as far as that shows without starting one.

    Raises `InvalidConfig` for wrong arguments, `Misuse` for missing packages and files.
    """
    if engine.kind == "mock":
        from holdfast.actors.engines.mock import parse_settings

        parse_settings(engine.arguments)
        return
    if engine.kind == "class":
        check_found(engine.arguments, Path.cwd())
        return
    missing = [package for package in TORCH_PACKAGES if find_spec(package) is None]
    if missing:
        raise Misuse(
            f"the torch engine needs {', '.join(missing)}: pip install 'holdfast[torch]' "
            f"(or try --engine mock, which needs no model)"
        )
    from holdfast.actors.engines.torch.settings import read_settings

    check_model(Path(read_settings({"model_name": name, **engine.arguments}).model))


def check_model(directory: Path) -> None:
    """Whether the directory looks like a model in Hugging Face layout. Raises `Misuse`."""
    hint = "give one in Hugging Face layout with --model, or --engine torch alone for the model shipped with Holdfast"
    if not directory.is_dir():
        raise Misuse(f"model directory {directory} does not exist: {hint}")
    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if not any(directory.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise Misuse(f"model directory {directory} lacks {', '.join(missing)}: {hint}")
