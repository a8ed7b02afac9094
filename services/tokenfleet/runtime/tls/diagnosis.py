"""Why a peer and this process do not trust each other, in words that help.

gRPC says "socket closed" when the other side refuses a certificate. So after a failure the handshake is done
once more by hand, and what the two sides then tell each other is added to the error.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from tokenfleet.runtime.settings import split_address
from tokenfleet.runtime.tls.certificate import TlsError, client_context
from tokenfleet.runtime.tls.identity import Identity, own_identity

PATIENCE_S = 2.0
REFUSED = "it refuses the certificate of this process, and its own log says why"


async def diagnose(target: str, role: str) -> str:
    """What is wrong with the trust between this process and `target`; empty: nothing, or no TLS here."""
    identity = own_identity()
    if identity is None:
        return ""
    return await asyncio.to_thread(_try, identity, target, role)


def _try(identity: Identity, target: str, role: str) -> str:
    name = identity.name_of(role)
    try:
        context = client_context(identity.certificate.files)
        context.set_alpn_protocols(["h2"])  # a gRPC server hangs up on who does not say it
        with (
            socket.create_connection(split_address(target), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            return "" if _is_greeted(connection) else REFUSED
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused here: {error.verify_message}"
    except ssl.SSLError as error:
        return _explain(error.reason or str(error))
    except TlsError as error:
        return str(error)
    except (OSError, ValueError):
        return ""  # it cannot be reached at all, which the first error says


def _is_greeted(connection: ssl.SSLSocket) -> bool:
    """Under TLS 1.3 a client that is refused hears of it only now, and gRPC's servers do not even say it."""
    try:
        return bool(connection.recv(1))
    except (ConnectionResetError, ssl.SSLEOFError):
        return False


def _explain(reason: str) -> str:
    if "EOF" in reason:
        return ""
    if "ALERT" in reason:
        words = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"it refuses the certificate of this process: {words}"
    if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "it speaks no TLS: set --tls-cert, --tls-key and --tls-ca there too"
    return f"no TLS with it: {reason.replace('_', ' ').lower()}"
