"""`python -m tokenfleet.router`"""

from __future__ import annotations

from tokenfleet.router.service import RouterService
from tokenfleet.router.settings import RouterSettings
from tokenfleet.runtime import lifecycle
from tokenfleet.runtime.settings import load_settings


def main() -> None:
    settings = load_settings(RouterSettings)
    lifecycle.run("router", settings, lambda life: RouterService(settings).run(life))


if __name__ == "__main__":
    main()
