"""What a run tells while it runs: a bar, a table of numbers, and TensorBoard's files where asked for."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import SettingsError
from ..saved.write import written

FILE = "log.csv"
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds")


class Log:
    """The rows of log.csv, one a step.

    Args:
        folder: of the run.
        more: columns beside `COLUMNS`.
        after: the step that a resumed run goes on from; rows behind it are of steps that are taken again.
        tensorboard: also write for TensorBoard.
        silent: write nothing; of several processes, one writes.

    Raises:
        SettingsError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, more: Sequence[str], *, after: int, tensorboard: bool, silent: bool = False
    ) -> None:
        self.path, self.columns, self.silent = folder / FILE, [*COLUMNS, *more], silent
        if silent:
            return
        self._board: Any = _board(folder / "tensorboard") if tensorboard else None
        rows = []
        if after and self.path.exists():
            whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")  # a disk that was full cuts
            rows = [row for row in csv.DictReader(whole.splitlines()) if int(row["step"]) <= after]
        with written(self.path, overwrite=True) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(self, row: Mapping[str, float]) -> None:
        """Add the row of a step; it is on disk when this returns."""
        if self.silent:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({name: f"{row[name]:.8g}" for name in row})
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row["step"]))


def bar(values: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> Any:
    """A bar on stderr, where one is wanted and stderr is a terminal; see tqdm for the rest."""
    return tqdm(values, disable=None if shown else True, **options)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "tensorboard is not installed: pip install tensorboard, or this project with [train]"
        ) from error
    return SummaryWriter(str(folder))
