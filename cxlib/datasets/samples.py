"""What every reader returns: paths, labels and class names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Samples:
    """Labelled image files.

    Attributes:
        paths: the image files, in the data set's own order.
        labels: class indices in [0, len(classes)), one a path.
        classes: the classes' names; its length is the number of outputs a network needs.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> "Samples":
        """Some of them, by their places, of the same classes."""
        paths, labels = (self.paths[index] for index in indices), (self.labels[index] for index in indices)
        return Samples(tuple(paths), tuple(labels), self.classes)
