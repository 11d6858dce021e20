"""Noting down a generation while it runs."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import flow
from flow.path import rms
from vae.image import to_pil

from ..attention import attention_maps
from ..attention.quadrants import Grid
from ..attention.record import BUDGET, WORKSPACE, nbytes_of
from ..fields import fault
from ..model import Model
from ..saved.write import check_output, written
from ..taps import BudgetError
from ..taps.moment import Selection
from ..taps.parts import Tap, find_taps
from ..taps.sizes import size
from ..taps.watch import check_watchable, watching
from ..tasks.generate import Generation
from .page import as_page
from .records import BlockStatistics, Records, StepRecord

THUMBNAIL = 192  # pixels along the longer side of a decoded preview
PART = "image-text"  # of the attention that is recorded


class Recording(Records):
    """A generation that was noted down, as `Recorder` does it.

    pipe.record("a red circle").save("circle.html")
    """

    def save(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write a page that shows the generation from inside: one HTML file, to be opened in a browser.

        Args:
            path: of the page.
            overwrite: replace a file that exists.

        Returns:
            The path of the page, in a list as of every `save`.

        Raises:
            SettingsError: the name does not end in .html.
            OSError: the path cannot be written; FileExistsError where it exists.
        """
        path = Path(path)
        check_output([path], suffix=".html", overwrite=overwrite)
        page = as_page(self)
        with written(path, overwrite=overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return [path]

    def __repr__(self) -> str:
        return f"Recording({len(self.steps)} steps of {self.made!r})"


class Recorder:
    """A generation that is watched: iterating takes the same steps and fills `recording`.

    The pictures are those of the unwatched generation, to the last bit. Every step is decoded, which takes
    the time of one picture each.
    """

    def __init__(self, pipe: Model, generation: Generation, *, attention: bool = True) -> None:
        """Prepare to watch.

        Args:
            pipe: what the generation runs in.
            generation: what is watched.
            attention: also add up the attention from image to text, for the heat maps of words.

        Raises:
            TapError: the transformer is compiled.
            BudgetError: the attention maps of all pictures together take too much.
            SettingsError: it has a cache: not every step is computed, and nothing is seen of the others.
        """
        check_watchable(pipe.mmdit)
        if generation.settings.cache != "none":
            raise fault(
                generation.settings,
                ["cache"],
                ": a report shows what every step computes; leave the cache out",
            )
        if attention:
            _check_budget(pipe, generation)
        self._pipe, self._generation, self._with_attention = pipe, generation, attention
        self._velocities: dict[tuple[int, str | None], Tensor] = {}
        self.recording = Recording(generation.sigmas, generation.encodings)

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._generation)

    def run(self) -> Recording:
        """Take all steps, and give what was noted down, with the result."""
        for _ in self:
            pass
        self.recording.made = self._generation.result()
        return self.recording

    def __iter__(self) -> Iterator[flow.Step]:
        """Take the generation's steps."""
        self.recording = Recording(self._generation.sigmas, self._generation.encodings)
        if not self._with_attention:
            yield from self._steps()
            return
        with attention_maps(self._pipe.mmdit, (PART,)) as maps:
            yield from self._steps()
        self.recording.attention = maps

    def _steps(self) -> Iterator[flow.Step]:
        taps = find_taps(self._pipe.mmdit)
        depth = self._pipe.mmdit.config.depth
        names = [f"joint_blocks.{block}.{stream}" for block in range(depth) for stream in ("x", "context")]
        chosen = [taps[name] for name in (*names, "output") if name in taps]  # the last block has no context
        steps = iter(self._generation)
        while True:
            self._velocities.clear()
            with watching(chosen, self._visit):  # only while the model runs, not while the caller does
                step = next(steps, None)
            if step is None:
                return
            self.recording.steps.append(self._record(step))
            yield step

    def _visit(self, tap: Tap, tensor: Tensor) -> None:
        """Note the first evaluation of each step: solvers of higher order make several."""
        for moment in Selection(None, None).moments():
            rows = moment.of(tensor).detach().float()
            samples = moment.samples or tuple(range(len(rows)))
            if tap.name == "output":
                for sample, row in zip(samples, rows, strict=True):
                    self._velocities.setdefault((sample, moment.branch), row)
            elif moment.branch in (None, "cond"):
                self._note_block(tap.name, samples, rows)

    def _note_block(self, name: str, samples: tuple[int, ...], rows: Tensor) -> None:
        _, block, stream = name.split(".")
        values = torch.stack([rms(rows), rows.abs().flatten(1).amax(dim=1)], dim=1).tolist()
        for sample, (mean, largest) in zip(samples, values, strict=True):
            key = int(block), ("x" if stream == "x" else "context"), len(self.recording.steps), sample
            self.recording.blocks.setdefault(key, BlockStatistics(mean, largest))

    def _record(self, step: flow.Step) -> StepRecord:
        velocities: dict[str, list[float]] = {"guided": rms(step.velocity.float()).tolist()}
        branches = {
            branch: torch.stack([self._velocities[sample, branch] for sample in range(len(step.x))])
            for branch in ("cond", "uncond")
            if all((sample, branch) in self._velocities for sample in range(len(step.x)))
        }
        velocities |= {branch: rms(rows).tolist() for branch, rows in branches.items()}
        if len(branches) == 2:
            velocities["guidance"] = rms(branches["cond"] - branches["uncond"]).tolist()
        images = self._pipe.decode(step.denoised).clamp(-1, 1)
        return StepRecord(
            step.number,
            float(step.sigma),
            step.denoised.detach().to("cpu", torch.float16),
            [_thumbnail(to_pil(image)) for image in images.detach().cpu()],
            velocities,
        )


def _check_budget(pipe: Model, generation: Generation) -> None:
    """See, before anything is drawn, that the attention maps of all pictures fit."""
    config = pipe.mmdit.config
    rows, columns = (side // config.patch_size for side in generation.noise.shape[2:])
    prompts = generation.encodings[:-1]
    lengths = [one.context.shape[1] for one in prompts]
    needed = sum(nbytes_of({PART: config.depth}, Grid(rows, columns, pool=1), text) for text in lengths)
    if needed + WORKSPACE > BUDGET:
        raise BudgetError(
            f"a report of {len(prompts)} pictures keeps {size(needed + WORKSPACE)} of attention maps, and "
            f"{size(BUDGET)} at most are allowed: draw fewer pictures at a time, or smaller ones"
        )


def _thumbnail(picture: Image.Image) -> Image.Image:
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture
