"""`ryorin models`: base models and embedders on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ryorin.commands.common import json_option, print_json, print_rows, say, stopping_in_order

if TYPE_CHECKING:
    from ryorin.models.folders import Role


@click.group()
def models() -> None:
    """
    Base models and embedders on this machine.

    \b
    Example:
        ryorin models list
        ryorin models pull smollm2-135m-instruct
    """


@models.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """
    List the models that are here and the bundled ones that could be.

    \b
    Example:
        ryorin models list --json
    """
    from ryorin.models.registry import list_models
    from ryorin.settings import load_settings

    rows = [asdict(line) for line in list_models(load_settings())]
    if not as_json:
        rows = [row | {"digest": row["digest"] and row["digest"][:12]} for row in rows]
    print_rows(rows, ["name", "role", "state", "digest", "source"], as_json=as_json, empty="no models")


@models.command("pull")
@click.argument("name")
@json_option
def pull_command(name: str, as_json: bool) -> None:
    """
    Fetch the bundled model NAME, verify it and convert it; done once.

    \b
    Example:
        ryorin models pull smollm2-135m-instruct
    """
    from ryorin.models.registry import pull
    from ryorin.settings import load_settings

    settings = load_settings()
    with stopping_in_order():
        pull(settings, name, say)
    _show(name, as_json)


@models.command("add")
@click.argument("name")
@click.option("--path", "path", type=click.Path(path_type=Path), metavar="DIR", help="A model folder; it is copied.")
@click.option("--hf", "repository", metavar="ORG/NAME", help="A model of the Hugging Face hub.")
@click.option("--revision", metavar="R", help="With --hf: a branch, tag or commit.")
@click.option("--endpoint", metavar="URL", help="Base URL of an OpenAI-compatible embedding server.")
@click.option("--model", "model", metavar="M", help="With --endpoint: the server's name for the model.")
@click.option("--api-key-env", metavar="VAR", help="With --endpoint: the environment variable that holds the key.")
@click.option("--role", type=click.Choice(["base", "embedder"]), help="What it is for; base unless --endpoint.")
@json_option
def add_command(
    name: str,
    path: Path | None,
    repository: str | None,
    revision: str | None,
    endpoint: str | None,
    model: str | None,
    api_key_env: str | None,
    role: str | None,
    as_json: bool,
) -> None:
    """
    Add a model of your own as NAME: a folder, a hub model or an embedding server.

    Base models need safetensors, config.json, a tokenizer and a chat template; embedders are sentence-transformers
    folders or servers. Pickled weights are refused.

    \b
    Example:
        ryorin models add our-qwen --path /models/Qwen2.5-0.5B-Instruct
        ryorin models add qwen --hf Qwen/Qwen2.5-0.5B-Instruct
        ryorin models add e5-base --hf intfloat/multilingual-e5-base --role embedder
        ryorin models add tei --endpoint http://127.0.0.1:8080/v1 --model bge-m3
    """
    from ryorin.models.install import add_endpoint, add_folder, add_from_hub
    from ryorin.settings import load_settings

    if sum(source is not None for source in (path, repository, endpoint)) != 1:
        raise click.UsageError("Name exactly one source: --path DIR, --hf ORG/NAME or --endpoint URL.")
    if revision and not repository:
        raise click.UsageError("--revision goes with --hf.")
    if endpoint is None and (model or api_key_env):
        raise click.UsageError("--model and --api-key-env go with --endpoint.")
    settings = load_settings()
    kind: Role = "embedder" if role == "embedder" else "base"
    with stopping_in_order():
        if path is not None:
            add_folder(settings, name, path, kind, say)
        elif repository is not None:
            add_from_hub(settings, name, repository, revision, kind, say)
        elif endpoint is not None:
            if not model:
                raise click.UsageError("--endpoint needs --model: the server's name for the model.")
            if role == "base":
                raise click.UsageError("--endpoint is for embedders; a base model must lie on this machine.")
            add_endpoint(settings, name, endpoint, model, api_key_env, say)
    _show(name, as_json)


def _show(name: str, as_json: bool) -> None:
    """The model's line, as JSON or as a sentence on standard error."""
    from ryorin.models.registry import list_models
    from ryorin.settings import load_settings

    line = next(line for line in list_models(load_settings()) if line.name == name)
    if as_json:
        print_json(asdict(line))
    else:
        say(f"{line.role} {line.name} {(line.digest or '')[:12]} is in {line.path}")
