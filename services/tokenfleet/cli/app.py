"""The commands, their options and their help. What they do lives beside, and is imported when it is done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenfleet.cli.errors import CliError

# Paragraphs after the first keep their line breaks: they have to fit into a terminal of 80 columns.
_HELP = """
Serve large language models from a fleet of small services.

[bold]On this machine, without a GPU[/bold]
  tokenfleet up        the whole fleet, with a small real model
  tokenfleet status    what runs where, from another terminal
"""

_UP_HELP = """
Start a whole fleet on this machine; Ctrl-C stops it.

Store, model-loader, router, workers, tokenizers and gateway run as separate
processes, as they would on a cluster. One that crashes is started again.
Ctrl-C lets running requests finish and stops them all, a second one at once.

[bold]Examples[/bold]
  tokenfleet up                            http://127.0.0.1:8080, gRPC on 8081
  tokenfleet up --port 8090 --workers 3    another one beside it
  tokenfleet up --engine sim               a simulated engine instead of a model
  tokenfleet up --catalog my-models.yaml   your own models

Every setting of a service can be given in the environment, for example
TOKENFLEET_ROUTER_LOG_LEVEL=debug; they are listed by, for example,
python -m tokenfleet.router --help
"""

_STATUS_HELP = """
Show the running fleet: its workers, models and processes.

[bold]Examples[/bold]
  tokenfleet status                          the fleet on this machine
  tokenfleet status --json | jq .workers     for programs
  tokenfleet status --router 10.0.0.7:8083   a fleet elsewhere
"""

app = typer.Typer(
    name="tokenfleet",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Runs the command line; an error is one message on stderr and exit code 1, never a traceback."""
    try:
        app()
    except CliError as error:
        print(f"tokenfleet: {error}", file=sys.stderr)
        sys.exit(1)


@app.command(help=_UP_HELP)
def up(
    *,
    port: Annotated[int, typer.Option(help="HTTP port of the gateway.", min=1, max=65535)] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="gRPC port of the gateway; by default the one after --port.", min=1, max=65535),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address the gateway listens on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option("--workers", "-w", help="Number of workers.", min=1)] = 2,
    tokenizers: Annotated[int, typer.Option(help="Number of tokenizers.", min=1)] = 2,
    zones: Annotated[
        str, typer.Option(help="Zones, comma separated: workers are put into them in turn.")
    ] = "zone-a,zone-b",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            help="Engine the workers can run; may be repeated.",
            show_default="llamacpp and sim",
        ),
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="YAML file with the models to serve.", exists=True, dir_okay=False)
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where logs and the store are kept.", show_default="in ~/.local/state/tokenfleet"),
    ] = None,
    grace_s: Annotated[
        float, typer.Option(help="Seconds for running requests to finish on Ctrl-C.", min=0)
    ] = 10.0,
) -> None:
    from tokenfleet.cli.up import UpOptions, run_fleet

    raise typer.Exit(
        run_fleet(
            UpOptions(
                host=host,
                port=port,
                grpc_port=grpc_port,
                workers=workers,
                tokenizers=tokenizers,
                zones=tuple(zone.strip() for zone in zones.split(",") if zone.strip()),
                engines=tuple(engine or ("llamacpp", "sim")),
                catalog=catalog.resolve() if catalog else None,
                state_dir=state_dir.resolve() if state_dir else None,
                grace_s=grace_s,
            )
        )
    )


@app.command(help=_STATUS_HELP)
def status(
    *,
    port: Annotated[
        int | None, typer.Option(help="HTTP port of the fleet meant, where several run.", min=1, max=65535)
    ] = None,
    router: Annotated[str, typer.Option(help="host:port of a router's gRPC, for a fleet elsewhere.")] = "",
    loader: Annotated[str, typer.Option(help="host:port of its model-loader's gRPC, with --router.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    from tokenfleet.cli.status import show_status

    show_status(port=port, router=router, loader=loader, as_json=as_json)


@app.command()
def version() -> None:
    """Print the version."""
    from tokenfleet import __version__

    print(f"tokenfleet {__version__}")
