"""`python -m tokenfleet.model_loader`"""

from __future__ import annotations

from tokenfleet.model_loader.service import ModelLoaderService
from tokenfleet.model_loader.settings import ModelLoaderSettings
from tokenfleet.runtime import lifecycle
from tokenfleet.runtime.settings import load_settings


def main() -> None:
    settings = load_settings(ModelLoaderSettings)
    lifecycle.run("model-loader", settings, lambda life: ModelLoaderService(settings).run(life))


if __name__ == "__main__":
    main()
