"""`python -m tokenfleet.tokenizer`"""

from __future__ import annotations

from tokenfleet.runtime.prefork import serve
from tokenfleet.runtime.settings import load_settings
from tokenfleet.tokenizer.service import TokenizerService
from tokenfleet.tokenizer.settings import TokenizerSettings


def main() -> None:
    settings = load_settings(TokenizerSettings)
    serve("tokenizer", settings, settings.processes, lambda own, life: TokenizerService(own).run(life))


if __name__ == "__main__":
    main()
