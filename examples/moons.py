"""Flows in two dimensions: every path, every solver, reflow and likelihood, and a picture of where points go.

    python examples/moons.py -o flows.png

Small networks learn to carry normal noise to two half moons and to eight Gaussians. What is printed: how near
each path of `flow.PATHS` comes to the data and how likely it finds them, what each solver makes of 16
evaluations, and what reflow does to the paths. docs/flows.md explains it step by step.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

import flow

FULL = flow.sigmas(100, schedule_shift=1.0, preset="linear")
REACH = 3.3
"""Half of the plane that a panel shows."""
NIGHT = torch.tensor([11, 12, 26]) / 255
PALETTE = torch.tensor([[255, 214, 120], [255, 120, 110], [190, 60, 190], [70, 70, 255]]) / 255
"""From data to noise."""


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Points on two half circles that reach into each other, with a little noise, (count, 2)."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.05 * torch.randn(count, 2, generator=generator)
    return 1.5 * points - torch.tensor([0.75, 0.375])


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Points around the corners of an octagon, (count, 2)."""
    angle = math.pi / 4 * torch.randint(8, (count,), generator=generator)
    centres = 2.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.2 * torch.randn(count, 2, generator=generator)


DATA: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "moons": moons,
    "eight gaussians": eight_gaussians,
}


class Field(nn.Module):
    """A velocity: three hidden layers that predict v, which is of the same size all along every path."""

    def __init__(self, path: flow.Path, width: int = 96) -> None:
        super().__init__()
        self.path = path
        sizes = [2 + 12 + 7, width, width, width]
        hidden = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity at states (B, 2) and levels (B,), (B, 2)."""
        scales, level = self.path.at(sigma, x), sigma[:, None]
        place = x / torch.hypot(scales.data, scales.noise)
        waves = torch.cat([place, 2 * place, 4 * place, math.pi * level * torch.arange(1, 4)], 1)
        v = self.layers(torch.cat([place, level, waves.sin(), waves.cos()], 1))
        return flow.convert(v, x, sigma, source="v", target="velocity", path=self.path)


def train(
    path: flow.Path, draw: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int, seed: int = 0
) -> Field:
    """Teach a field with pairs of data and noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        field = Field(path)
    optimizer = torch.optim.Adam(field.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        data, noise = draw(generator)
        sigma = flow.sample_sigmas(len(data), generator, density="uniform").clamp_min(1e-3)
        optimizer.zero_grad()
        with torch.enable_grad():
            flow.cfm_loss(field, data, noise=noise, sigma=sigma, path=path).backward()
        optimizer.step()
        schedule.step()
    return field.requires_grad_(requires_grad=False)


def apart(name: str, batch: int = 512) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Data and noise that know nothing of each other, as a first flow is taught."""
    return lambda generator: (DATA[name](batch, generator), torch.randn(batch, 2, generator=generator))


def reflowed(first: Field, steps: int, count: int = 20_000, batch: int = 512) -> Field:
    """A second flow, taught with noise and where the first one takes it."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    (pairs,) = flow.reflow_pairs(first, [noise], flow.sigmas(25, 1.0, "linear"), "heun")

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(count, (batch,), generator=generator)
        return pairs.data[chosen], pairs.noise[chosen]

    return train(first.path, draw, steps)


def distance(points: Tensor, others: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two clouds (N, 2): the root of its mean square over 64 directions."""
    angle = math.pi * torch.arange(64) / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    sorted_points, sorted_others = ((cloud @ directions).sort(0).values for cloud in (points, others))
    return float((sorted_points - sorted_others).square().mean().sqrt())


def compare_paths(fields: dict[str, Field], noise: Tensor, fresh: Tensor) -> None:
    """Print how near each path's flow comes to fresh data, and how likely it finds them."""
    print(f"{'path':<18}{'distance':>9}{'log p':>8}")
    floor = distance(DATA["moons"](len(noise), torch.Generator().manual_seed(8)), fresh)
    for name, field in fields.items():
        down = FULL.clamp_min(1e-3) if field.path.ends[0].noise == 0 else FULL
        made = flow.solve(field, field.path.prior(noise), down, "heun")
        found = flow.log_likelihood(field, fresh[:500], down[::4].flip(0), path=field.path, solver="rk4")
        print(f"{name:<18}{distance(made, fresh):>9.3f}{float(found.log_prob.mean()):>8.2f}")
    print(f"{'other data':<18}{floor:>9.3f}\n")


def compare_solvers(field: Field, noise: Tensor, evaluations: int = 16) -> None:
    """Print how far half of the points end from the solution of the flow by each solver, and what it took."""
    print(f"{'solver':<18}{'evaluations':>12}{'error':>9}")
    solution = flow.solve(field, noise, FULL, "rk4")
    for name, solver in flow.SOLVERS.items():
        calls = 0

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return field(x, sigma)

        steps = (evaluations - solver.startup) // (solver.evaluations or evaluations)
        options = {"generator": torch.Generator().manual_seed(2)} if solver.stochastic else {}
        options |= {"rtol": 0.02, "atol": 0.02} if solver.evaluations is None else {}
        made = flow.solve(counted, noise, flow.sigmas(max(1, steps), 1.0, "linear"), name, **options)
        print(f"{name:<18}{calls:>12}{float((made - solution).norm(dim=1).median()):>9.4f}")
    print()


def compare_reflow(first: Field, second: Field, noise: Tensor, fresh: Tensor, name: str) -> None:
    """Print how straight either flow is, and how near few steps of Euler come to the data."""
    print(f"{name:<18}{'straightness':>13}" + "".join(f"{steps:>4} steps" for steps in (1, 2, 4, 100)))
    for which, field in (("first flow", first), ("reflowed", second)):
        bend = float(flow.straightness(field, noise, FULL).mean())
        ends = [flow.solve(field, noise, flow.sigmas(steps, 1.0, "linear")) for steps in (1, 2, 4, 100)]
        print(f"{which:<18}{bend:>13.4f}" + "".join(f"{distance(end, fresh):>10.3f}" for end in ends))
    others = DATA[name](len(noise), torch.Generator().manual_seed(8))
    print(f"{'other data':<61}{distance(others, fresh):>10.3f}\n")


def paths_panel(field: Field, size: int, count: int = 800) -> Tensor:
    """Where points go on their way from noise to data, as light, (3, size, size) in [0, 1]."""
    states = [torch.randn(count, 2, generator=torch.Generator().manual_seed(5))]
    states += [step.x for step in flow.heun(field, states[0], flow.sigmas(60, 1.0, "linear"))]
    track = torch.stack(states, -1)  # (count, 2, 61)
    track = interpolate(track, size=1 + 60 * 16, mode="linear", align_corners=True)
    share = torch.linspace(1, 0, track.shape[-1])  # 1 at noise
    light = splat(track.permute(2, 0, 1), shaded(share)[:, None].expand(-1, count, 3), size)
    ends = splat(track[..., -1], PALETTE[0].expand(count, 3), size)
    light = 0.045 * light + 0.03 * blurred(light, size / 200)
    ends = 2 * blurred(ends, size / 400) + 3 * blurred(ends, size / 80)
    return 1 - (1 - NIGHT[:, None, None]) * torch.exp(-light - ends)


def density_panel(field: Field, size: int) -> Tensor:
    """How likely the flow finds each place of the plane, as colour, (3, size, size) in [0, 1]."""
    cells = size // 5
    axis = torch.linspace(-REACH, REACH, cells)
    grid = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), -1).reshape(-1, 2)
    up = flow.sigmas(16, 1.0, "linear").flip(0)
    density = flow.log_likelihood(field, grid, up, solver="midpoint").log_prob.exp()
    heat = interpolate(density.reshape(1, 1, cells, cells), size=(size, size), mode="bicubic")[0, 0]
    heat = (heat.clamp_min(0) / density.quantile(0.998)).clamp_max(1).sqrt()
    return NIGHT[:, None, None] * (1 - heat) + heat * shaded(1 - heat).movedim(-1, 0)


def shaded(share: Tensor) -> Tensor:
    """The colour for a share of noise in [0, 1], (..., 3)."""
    place = share.clamp(0, 1) * (len(PALETTE) - 1)
    low = place.long().clamp_max(len(PALETTE) - 2)
    return torch.lerp(PALETTE[low], PALETTE[low + 1], (place - low)[..., None])


def splat(points: Tensor, colours: Tensor, size: int) -> Tensor:
    """Light where points (..., 2) of the plane lie, shared by the four pixels around, (3, size, size)."""
    place = (points * torch.tensor([1.0, -1.0]) / REACH + 1).reshape(-1, 2) * size / 2 - 0.5
    corner, light = place.floor(), torch.zeros(3, size * size)
    for across, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = corner + torch.tensor([across, down])
        share = (1 - (place - at).abs()).clamp_min(0).prod(1)
        inside = ((at >= 0) & (at < size)).all(1)
        index = (at[:, 1] * size + at[:, 0]).long()[inside]
        light.index_add_(1, index, (colours.reshape(-1, 3) * share[:, None])[inside].T)
    return light.reshape(3, size, size)


def blurred(light: Tensor, width: float) -> Tensor:
    """Light (3, H, W) spread by a Gaussian of that width in pixels."""
    reach = math.ceil(3 * width)
    bell = torch.exp(-((torch.arange(-reach, reach + 1) / width) ** 2) / 2)
    bell = bell / bell.sum()
    across = conv2d(light[:, None], bell.reshape(1, 1, 1, -1), padding=(0, reach))
    return conv2d(across, bell.reshape(1, 1, -1, 1), padding=(reach, 0))[:, 0]


def picture(rows: Sequence[tuple[str, Field, Field]], size: int) -> Image.Image:
    """A row for each data set: the paths of the first flow, those after reflow, and the likelihood."""
    edge, text = size // 24, size // 9
    width, height = 3 * size + 4 * edge, len(rows) * (size + text + edge) + edge
    sheet = Image.new("RGB", (width, height), tuple((NIGHT * 255 * 0.6).int().tolist()))
    painter, font = ImageDraw.Draw(sheet), ImageFont.load_default(size // 22)
    for row, (name, first, second) in enumerate(rows):
        panels = {
            f"noise to {name}: the first flow": paths_panel(first, size),
            "the same noise after reflow": paths_panel(second, size),
            "likelihood under the first flow": density_panel(first, size),
        }
        top = edge + row * (size + text + edge)
        for column, (caption, panel) in enumerate(panels.items()):
            left = edge + column * (size + edge)
            pixels = (panel.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
            sheet.paste(Image.fromarray(pixels), (left, top))
            middle = (left + size // 2, top + size + text // 2)
            painter.text(middle, caption, fill=(205, 205, 225), font=font, anchor="mm")
    return sheet


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Train, print three tables and draw the picture."""
    args = arguments().parse_args(argv)
    noise = torch.randn(args.points, 2, generator=torch.Generator().manual_seed(3))
    fresh = {name: draw(args.points, torch.Generator().manual_seed(4)) for name, draw in DATA.items()}
    fields = {name: train(path, apart("moons"), args.steps) for name, path in flow.PATHS.items()}
    compare_paths(fields, noise, fresh["moons"])
    compare_solvers(fields["rectified"], noise)

    rows = []
    for name in DATA:
        rectified = flow.PATHS["rectified"]
        first = fields["rectified"] if name == "moons" else train(rectified, apart(name), args.steps)
        second = reflowed(first, args.steps)
        compare_reflow(first, second, noise, fresh[name], name)
        rows.append((name, first, second))
    if args.output:
        picture(rows, args.size).save(args.output)
        print(args.output)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1200, help="of training, for each of eight networks")
    parser.add_argument("--points", type=int, default=2000, help="that the tables compare (default 2000)")
    parser.add_argument("--size", type=int, default=480, help="of each of the six panels, in pixels")
    parser.add_argument("-o", "--output", type=Path, help="where to put the picture")
    return parser


if __name__ == "__main__":
    torch.set_num_threads(1)  # the matrices are so small that threads would only wait for each other
    main()
