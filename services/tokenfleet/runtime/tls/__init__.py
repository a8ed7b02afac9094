"""Who a process is to others: its certificate, read again when it is replaced, and checked before it is used.

Between the services TLS is mutual, and a peer is known by its *role*: the router's certificate says
`router.tokenfleet.internal`, whatever address it has today. So pods may move, and a worker's stolen key does
not make a router. `Identity` is that; `Certificate` is what it has in common with the gateway's public face.

The identity belongs to the process, like its log, and is not handed to each of the places that open a
connection: one that was forgotten would talk in the clear.
"""

from tokenfleet.runtime.tls.certificate import Certificate, PemFiles, TlsError
from tokenfleet.runtime.tls.identity import Identity, adopt, own_identity

__all__ = ["Certificate", "Identity", "PemFiles", "TlsError", "adopt", "own_identity"]
