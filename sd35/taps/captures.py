"""What was captured: tensors by tap, step and branch, in memory and in a file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..evaluation import Branch
from ..saved.write import check_output, written
from .errors import TapError
from .match import Pattern, match, near
from .sizes import size

FORMAT = "sd35.Captures 1"  # of saved captures; the number goes up when old readers would go wrong


@dataclass(frozen=True)
class Record:
    """One tensor, and when it was computed; see `Moment` for the fields that a generation fills."""

    tap: str
    tensor: Tensor
    dims: (
        tuple[str, ...] | None
    )  # the name of each dimension; None after a reduction, or for modules not ours
    step: int | None = None
    sigma: float | None = None
    branch: Branch | None = None
    samples: tuple[int, ...] | None = None


@dataclass(eq=False)
class Captures(Mapping[str, Tensor]):
    """Captured tensors, as a mapping from a tap's name to its tensor.

    A tap that was computed several times, for the steps and branches of a generation, has several records:
    narrow them down with `select`, or take them together with `stack` or from `records`.
    """

    records: list[Record] = field(default_factory=list)
    """In the order in which they were computed."""

    def __getitem__(self, name: str) -> Tensor:
        """The one tensor of a tap.

        Raises:
            TapError: there is none of that name, or there are several.
        """
        records = self.of(name)
        if len(records) > 1:
            raise TapError(
                f"{name} was computed {len(records)} times ({_times(records)}): narrow it down, as in "
                f"select(step=0, branch='cond')[{name!r}], or take stack({name!r})"
            )
        return records[0].tensor

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(record.tap for record in self.records))

    def __len__(self) -> int:
        return len(dict.fromkeys(record.tap for record in self.records))

    def __contains__(self, name: object) -> bool:
        return any(record.tap == name for record in self.records)

    def __repr__(self) -> str:
        lines = [f"{name}: {_shape(own[0])} x {len(own)}" for name in self if (own := self.of(name))]
        return "\n".join([f"Captures of {len(self)} taps, {size(self.nbytes)}", *lines])

    @property
    def nbytes(self) -> int:
        """What the tensors take."""
        return sum(record.tensor.numel() * record.tensor.itemsize for record in self.records)

    def of(self, name: str) -> list[Record]:
        """The records of one tap, at least one.

        Raises:
            TapError: there is none.
        """
        records = [record for record in self.records if record.tap == name]
        if not records:
            raise TapError(f"nothing was captured of {name!r}" + near(name, list(self)))
        return records

    def stack(self, name: str) -> Tensor:
        """All records of a tap in one tensor, (records, ...), in the order of `of(name)`.

        Raises:
            TapError: there is none, or they differ in shape.
        """
        records = self.of(name)
        shapes = list(dict.fromkeys(tuple(record.tensor.shape) for record in records))
        if len(shapes) > 1:
            raise TapError(f"the records of {name} have several shapes, {', '.join(map(str, shapes))}")
        return torch.stack([record.tensor for record in records])

    def select(self, *patterns: Pattern, step: int | None = None, branch: Branch | None = None) -> "Captures":
        """The records of some taps, one step, or one branch; what is left out does not narrow.

        Raises:
            TapError: a pattern matches nothing here, or there is no record of that step or branch.
        """
        chosen = match(list(self), patterns).values() if patterns else [list(self)]
        names = {name for found in chosen for name in found}
        records = [record for record in self.records if record.tap in names]
        for what, wanted in (("step", step), ("branch", branch)):
            there = list(dict.fromkeys(getattr(record, what) for record in records))
            if wanted is not None and wanted not in there:
                raise TapError(f"no {what} {wanted!r} was captured, only {', '.join(map(str, there))}")
            records = [record for record in records if wanted is None or getattr(record, what) == wanted]
        return Captures(records)

    def save(self, path: Path | str, *, overwrite: bool = False) -> list[Path]:
        """Write a safetensors file whose metadata describes every tensor in JSON.

        The file appears whole or not at all. Gradients are not kept.

        Args:
            path: of the file, which ends in .safetensors.
            overwrite: replace a file that is there.

        Returns:
            The path of the file, in a list as of every `save`.

        Raises:
            ValueError: the name ends otherwise.
            FileExistsError: there is such a file.
            OSError: the folder does not exist or may not be written to.
        """
        path = Path(path)
        check_output([path], suffix=".safetensors", overwrite=overwrite)
        # Copies, so that tensors which share memory, as what a module merely passes on does, can be written.
        copies = [record.tensor.detach().cpu().clone() for record in self.records]
        tensors = {f"{i:06d}": tensor.contiguous() for i, tensor in enumerate(copies)}
        nothing = torch.empty(0, dtype=torch.float32, device="cpu")  # asdict would copy the tensors
        bare = [asdict(replace(record, tensor=nothing)) for record in self.records]
        described = [{name: value for name, value in one.items() if name != "tensor"} for one in bare]
        metadata = {"format": FORMAT, "records": json.dumps(described)}
        with written(path, overwrite=overwrite) as new:
            save_file(tensors, new, metadata)
        return [path]

    @classmethod
    def load(cls, path: Path | str) -> "Captures":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            TapError: it is no file of captures, or a damaged one.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise TapError(f"{path} holds no captures ({FORMAT}), but {metadata.get('format')!r}")
                described = json.loads(metadata["records"])
                return cls([_record(one, file.get_tensor(f"{i:06d}")) for i, one in enumerate(described)])
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise TapError(f"{path} is damaged: {error}") from error


def _record(described: dict[str, object], tensor: Tensor) -> Record:
    """A record as JSON has it, whose tuples came back as lists."""
    tupled = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
    return Record(tensor=tensor, **tupled)  # pyright: ignore[reportArgumentType]  (checked by the file's format)


def _times(records: list[Record]) -> str:
    """The steps and branches of some records, in words."""
    steps = list(dict.fromkeys(record.step for record in records if record.step is not None))
    branches = list(dict.fromkeys(record.branch for record in records if record.branch is not None))
    if not steps:
        return "outside a generation"
    return f"steps {steps[0]} to {steps[-1]}, {' and '.join(branches)}"


def _shape(record: Record) -> str:
    """A record's shape with the names of its dimensions."""
    shape = tuple(record.tensor.shape)
    if record.dims is None:
        return str(shape)
    return "(" + ", ".join(f"{name} {n}" for name, n in zip(record.dims, shape, strict=True)) + ")"
