"""Engines: one module or package each behind the small protocol in `base`, imported only when used."""
