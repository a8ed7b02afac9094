"""The commands, their options and their help. What they do lives beside, and is imported when it is done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenfleet.cli import keys, models_app
from tokenfleet.cli.errors import CliError
from tokenfleet.cli.options import ApiKey, Json, Port, Url

# Paragraphs after the first keep their line breaks: they have to fit into a terminal of 80 columns.
_HELP = """
Serve large language models from a fleet of small services.

[bold]On this machine, without a GPU[/bold]
  tokenfleet up              the whole fleet, with a small real model
and then, from another terminal
  tokenfleet chat            talk to it
  tokenfleet chat "Why?"     one question, one answer
  tokenfleet models          what can be asked, and where it is loaded
  tokenfleet status          what runs where, and how it is
  tokenfleet explain ID      why a request went where it went
  tokenfleet quantize        a smaller file of a model

chat and models take the address of a fleet elsewhere with --url. What up
prints can be called with curl, the OpenAI SDK, or tokenfleet.client.
"""

_UP_HELP = """
Start a whole fleet on this machine; Ctrl-C stops it.

Store, model-loader, router, workers, tokenizers and gateway run as separate
processes, as they would on a cluster. One that crashes is started again.
Ctrl-C lets running requests finish and stops them all, a second one at once.

[bold]Examples[/bold]
  tokenfleet up                            http://127.0.0.1:8080, gRPC on 8081
  tokenfleet up --port 8090 --workers 3    another one beside it
  tokenfleet up --engine sim               no model: a simulated engine
  tokenfleet up --catalog my-models.yaml   your own models

Every setting of a service can be given in the environment, for example
TOKENFLEET_ROUTER_LOG_LEVEL=debug; they are listed by, for example,
python -m tokenfleet.router --help
"""

_STATUS_HELP = """
Show the running fleet: its workers, models and processes.

Of each worker: the requests that run on it and wait there, how full its KV
cache is, and the mean time of its latest steps, each of which is a token for
every running request.

[bold]Examples[/bold]
  tokenfleet status                          the fleet on this machine
  tokenfleet status --json | jq .workers     for programs
  tokenfleet status --router 10.0.0.7:8083   a fleet elsewhere
"""

_EXPLAIN_HELP = """
Show why a request went where it went, and how right the router was.

For each attempt: the workers that the router considered, what it predicted
for the request on each (TTFT: time to first token; step: time of a token;
cost: seconds in all), which it chose and why; then what really happened.
The id is the "id" of the answer, or the X-Request-Id that the client sent.

[bold]Examples[/bold]
  tokenfleet explain chatcmpl-0a1b2c3d                  the fleet on this machine
  tokenfleet explain my-id --json | jq .attempts        for programs
  tokenfleet explain my-id --tenant acme                a request of another tenant
  tokenfleet explain my-id --router 10.0.0.7:8083       a fleet elsewhere
"""

_CHAT_HELP = """
Talk to a model, whose answer appears as it is generated.

With a question it is answered, without one a conversation begins. Each
answer ends with its TTFT (time to first token), its tokens, and tokens/s.
Ctrl-C stops a running answer, and the fleet stops working on it; on an
empty line it leaves, as Ctrl-D and /quit do. /help lists the commands.

[bold]Examples[/bold]
  tokenfleet chat                               a conversation
  tokenfleet chat "What is a prime number?"     one answer
  tokenfleet chat -m sim-smollm2 "Hello"        another model
  tokenfleet chat -s "Answer in one word." -t 0 "Capital of France?"
  tokenfleet chat < letter.txt > answer.txt     through files and pipes
  tokenfleet chat --json "Hello" | jq .ttft_s   for programs
  tokenfleet chat --url https://llm.example.com a fleet elsewhere

Only the answer goes to stdout; the line of figures goes to stderr.
"""

_QUANTIZE_HELP = """
Make a smaller file or folder of the same model.

SOURCE is a .gguf, a folder in Hugging Face's layout, or a name of the
catalog. A gguf becomes another gguf, for llama.cpp; or, with a method that
makes a folder, one for vLLM, which needs torch and auto-round. What OUTPUT
names appears only when it is whole. --list shows the methods.

[bold]Examples[/bold]
  tokenfleet quantize --list
  tokenfleet quantize smollm2-135m-instruct small.gguf --method q8_0 --check
  tokenfleet quantize models/llama-8b llama-8b-w4a16 --method w4a16
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
    except BrokenPipeError:
        # whoever read the output has seen enough; the interpreter must not write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
    routers: Annotated[int, typer.Option(help="Number of routers, which share the models.", min=1)] = 1,
    zones: Annotated[
        str, typer.Option(help="Zones, comma separated: workers are put into them in turn.")
    ] = "zone-a,zone-b",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            help="Engine the workers can run; may be repeated. Of vllm,llamacpp they get one in turn.",
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
    api_keys: Annotated[
        Path | None,
        typer.Option(help="API keys, made with `tokenfleet keys new`.", exists=True, dir_okay=False),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The gateway's certificate, PEM, for HTTPS and gRPC over TLS.", dir_okay=False),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", dir_okay=False)] = None,
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
                routers=routers,
                zones=tuple(zone.strip() for zone in zones.split(",") if zone.strip()),
                engines=tuple(engine or ("llamacpp", "sim")),
                catalog=catalog.resolve() if catalog else None,
                state_dir=state_dir.resolve() if state_dir else None,
                grace_s=grace_s,
                api_keys=api_keys.resolve() if api_keys else None,
                tls_cert=tls_cert.resolve() if tls_cert else None,
                tls_key=tls_key.resolve() if tls_key else None,
            )
        )
    )


@app.command(help=_CHAT_HELP)
def chat(
    question: Annotated[
        list[str] | None, typer.Argument(help="What to ask; - reads it from stdin.", show_default=False)
    ] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model to ask.", show_default="the first that runs")
    ] = "",
    system: Annotated[
        str, typer.Option("--system", "-s", help="System prompt: what the model shall be.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0: always the likeliest token.", min=0, max=2),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the choice of tokens repeatable.")] = None,
    url: Url = "",
    port: Port = None,
    api_key: ApiKey = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli.chat import ChatOptions, run_chat

    raise typer.Exit(
        run_chat(
            ChatOptions(
                question=" ".join(question or ()),
                url=url,
                port=port,
                api_key=api_key,
                model=model,
                system=system,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                as_json=as_json,
            )
        )
    )


@app.command(help=_STATUS_HELP)
def status(
    *,
    port: Port = None,
    router: Annotated[str, typer.Option(help="host:port of a router's gRPC, for a fleet elsewhere.")] = "",
    loader: Annotated[str, typer.Option(help="host:port of its model-loader's gRPC, with --router.")] = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli.status import show_status

    show_status(port=port, router=router, loader=loader, as_json=as_json)


@app.command(help=_EXPLAIN_HELP)
def explain(
    request_id: Annotated[str, typer.Argument(help="Id of the request.", show_default=False)],
    *,
    tenant: Annotated[str, typer.Option(help="Whose request it was.")] = "default",
    port: Port = None,
    router: Annotated[
        str, typer.Option(help="host:port of the routers' gRPC, comma separated, for a fleet elsewhere.")
    ] = "",
    as_json: Json = False,
) -> None:
    from tokenfleet.cli.explain import show_explanation

    show_explanation(request_id, tenant=tenant, port=port, router=router, as_json=as_json)


@app.command(help=_QUANTIZE_HELP)
def quantize(
    source: Annotated[str, typer.Argument(help="The model to make smaller.", show_default=False)] = "",
    output: Annotated[
        Path | None, typer.Argument(help="The file or folder to write.", show_default=False)
    ] = None,
    *,
    method: Annotated[str, typer.Option("--method", "-m", help="What to make; --list lists them.")] = "q8_0",
    group_size: Annotated[
        int,
        typer.Option(
            help="Weights that share a scale, for w4a16, gptq and awq.", show_default="what fits", min=0
        ),
    ] = 0,
    iterations: Annotated[
        int,
        typer.Option(help="Rounds of tuning for a folder: 0 rounds to the nearest, 200 is thorough.", min=0),
    ] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Ask a few questions before and after, and compare.")
    ] = False,
    catalog: Annotated[
        Path | None,
        typer.Option(help="Catalog in which SOURCE is a name.", exists=True, dir_okay=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the methods and leave.")] = False,
) -> None:
    from tokenfleet.cli.quantize.command import QuantizeOptions, list_methods, run_quantize

    if list_:
        list_methods()
        return
    if not source or output is None:
        raise CliError("name the model and the output: tokenfleet quantize SOURCE OUTPUT --method METHOD")
    run_quantize(QuantizeOptions(source, output, method, catalog, group_size, iterations, check, force))


app.add_typer(models_app.app)
app.add_typer(keys.app)


@app.command()
def version() -> None:
    """Print the version."""
    from tokenfleet import __version__

    print(f"tokenfleet {__version__}")
