"""`tokenfleet keys`: makes API keys. A key is shown once; what is kept of it is its line in the keys file."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer

from tokenfleet.cli.errors import CliError

_NEW_HELP = """
Make a fresh API key and the line by which a gateway knows it.

The key goes to the caller and is shown only now; the line goes into the file
that the gateway reads (--api-keys-file), which takes effect within seconds.

[bold]Examples[/bold]
  tokenfleet keys new --tenant acme
  tokenfleet keys new --tenant acme --priority batch --expires 2027-01-31
  tokenfleet keys new --tenant acme --append-to keys.jsonl
  tokenfleet keys new --tenant ops --admin
"""

app = typer.Typer(
    name="keys", help="Make API keys for the gateway.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def _keys() -> None:
    """Keeps `new` a command of its own, as the only one that there is so far."""


@app.command(help=_NEW_HELP)
def new(
    *,
    tenant: Annotated[str, typer.Option(help="Whose requests these are: for fairness, quotas and the like.")],
    key_id: Annotated[
        str,
        typer.Option("--id", help="Name of the key in the file.", show_default="tenant-random"),
    ] = "",
    priority: Annotated[
        str, typer.Option(help="Highest class its requests get: interactive, standard or batch.")
    ] = "interactive",
    expires: Annotated[
        str,
        typer.Option(help="When it ends: 2027-01-31 means at its beginning, in UTC.", show_default="never"),
    ] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="It may manage the fleet's models too: tokenfleet models load.")
    ] = False,
    append_to: Annotated[
        str, typer.Option(help="Keys file to append the line to; it is made when there is none.")
    ] = "",
) -> None:
    from tokenfleet.gateway.api_keys import keys_file

    key = keys_file.new_key()
    try:
        entry = keys_file.ApiKey(
            id=keys_file.name_of(key_id or f"{tenant}-{secrets.token_hex(3)}", "id" if key_id else "tenant"),
            sha256=keys_file.digest(key.encode()),
            tenant=keys_file.name_of(tenant, "tenant"),
            ceiling=keys_file.ceiling_of(priority),
            expires=keys_file.expiry_of(expires) if expires else None,
            admin=admin,
        )
    except ValueError as error:
        raise CliError(f"--{error}") from error
    if append_to:
        _append(append_to, entry.line())
        print(f"the line of {entry.id} was added to {append_to}; the key, shown only now:", file=sys.stderr)
        print(key)
        return
    print("The key, for the caller and shown only now:\n", file=sys.stderr)
    print(key)
    print("\nIts line, for the file that the gateway reads (--api-keys-file):\n", file=sys.stderr)
    print(entry.line())


def _append(path: str, line: str) -> None:
    """In one write, behind a line break where the file lacks its last."""
    try:
        with open(path, "a+b") as file:
            size = file.tell()
            file.seek(max(0, size - 1))
            unfinished = size > 0 and file.read(1) != b"\n"
            file.write(b"\n" * unfinished + line.encode() + b"\n")
    except OSError as error:
        raise CliError(f"--append-to {path}: {error.strerror}") from error
