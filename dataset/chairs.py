"""chairs: rendered chairs in nested folders, without labels."""

from __future__ import annotations

from pathlib import Path

from dataset.base import Source, Spec
from dataset.files import Files, image_folder

SPECS = (
    Spec("chairs", 64, flip=True, source="https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar,"
                                         " unpacked into chairs/"),
)


def read(spec: Spec, root: Path) -> Source:
    return Source(Files(root / "chairs", image_folder(spec, root / "chairs")))
