"""How well models are kept where they are wanted: the loader's policies in virtual time."""
