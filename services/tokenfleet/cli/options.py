"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str,
    typer.Option(
        envvar="TOKENFLEET_URL", help="Base address of a gateway elsewhere, such as http://10.0.0.7:8080."
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(envvar="TOKENFLEET_API_KEY", help="API key, where the fleet wants one.", show_default=False),
]
Port = Annotated[
    int | None, typer.Option(help="HTTP port of the fleet meant, where several run here.", min=1, max=65535)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
