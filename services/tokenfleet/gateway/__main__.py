"""`python -m tokenfleet.gateway`"""

from __future__ import annotations

from tokenfleet.gateway.service import GatewayService
from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.runtime import lifecycle
from tokenfleet.runtime.settings import load_settings


def main() -> None:
    settings = load_settings(GatewaySettings)
    lifecycle.run("gateway", settings, lambda life: GatewayService(settings).run(life))


if __name__ == "__main__":
    main()
