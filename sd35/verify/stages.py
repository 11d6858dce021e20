"""Computing the stored activations again, from token ids to pixels."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

import flow
from mmdit import MMDiT, MMDiTConfig
from textenc import CLIP, T5, CLIPConfig, Encoding, Prompt, T5Config, assemble
from vae import VAE, VAEConfig

from ..taps.parts import Tap, find_taps
from ..taps.watch import watching
from ..velocity import GuidedVelocity
from .bounds import Family, Precision
from .reference import Reference

Module = TypeVar("Module", bound=nn.Module)

CLIPS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class Check:
    """One line of the table: a stage against the reference."""

    group: str
    stage: str
    absolute: float  # the largest error
    relative: float  # the same over the largest magnitude of what was expected
    bound: float  # on `relative`
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.relative <= self.bound


@dataclass
class Runner:
    """Where and in what everything is run, and when the last stage ended."""

    device: torch.device
    precision: Precision
    reference: Mapping[str, Reference]
    _last: float = field(default_factory=time.perf_counter)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of states and pictures: float32, or float64 in a float64 run."""
        return torch.promote_types(self.precision.dtype, torch.float32)

    def ready(self, module: Module, name: str) -> Module:
        """Give a module its stored weights, on the device and in the dtype."""
        module.load_state_dict(self.reference[name].weights)
        return module.to(self.device, self.precision.dtype).eval().requires_grad_(False)

    def given(self, name: str, *keys: str) -> Iterator[Tensor]:
        """Stored inputs, on the device; floats in `wide`, but noise levels as they are."""
        for key in keys:
            tensor = self.reference[name][f"in/{key}"].to(self.device)
            yield tensor.to(self.wide) if tensor.is_floating_point() and "sigma" not in key else tensor

    def start(self) -> None:
        """Begin to time the next stage, when the device has done what it was given."""
        self._last = self._now()

    def check(self, group: str, stage: str, actual: Tensor, expected: Tensor, family: Family) -> Check:
        """Compare a stage that has just ended."""
        return self._compared(group, stage, actual, expected, self.precision.bound(family), self._lap())

    def equal(self, group: str, stage: str, actual: Tensor, expected: Tensor) -> Check:
        """Compare what must be the same to the last bit."""
        return self._compared(group, stage, actual, expected, 0.0, self._lap())

    @contextmanager
    def timed_taps(
        self, root: nn.Module, names: Collection[str]
    ) -> Iterator[dict[str, tuple[Tensor, float]]]:
        """Keep the tensors at these taps, each with the time since the one before it."""
        taken: dict[str, tuple[Tensor, float]] = {}

        def visit(tap: Tap, tensor: Tensor) -> None:
            taken[tap.name] = tensor.detach().clone(), self._lap()

        taps = find_taps(root)
        with watching([tap for name, tap in taps.items() if name in names], visit):
            self.start()
            yield taken

    def tapped(
        self,
        group: str,
        taken: Mapping[str, tuple[Tensor, float]],
        expected: Mapping[str, Tensor],
        family: Family,
    ) -> Iterator[Check]:
        """Compare kept tensors, in the order in which they were computed."""
        for name, (tensor, seconds) in taken.items():
            yield self._compared(group, name, tensor, expected[name], self.precision.bound(family), seconds)

    def _compared(
        self, group: str, stage: str, actual: Tensor, expected: Tensor, bound: float, seconds: float
    ) -> Check:
        actual, expected = actual.detach().cpu().double(), expected.double()
        if actual.shape != expected.shape:
            shapes = f"{tuple(actual.shape)}, and the reference's is {tuple(expected.shape)}"
            raise RuntimeError(f"{group}: {stage} has the shape {shapes}")
        absolute = float((actual - expected).abs().max())
        return Check(group, stage, absolute, absolute / float(expected.abs().max()), bound, seconds)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def _lap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before


@torch.no_grad()
def run_stages(
    reference: Mapping[str, Reference], device: torch.device, precision: Precision
) -> Iterator[Check]:
    """Run the stored models stage by stage, and compare each stage with what the reference computed.

    Args:
        reference: what `load_reference` read.
        device: where to run.
        precision: what to run in.

    Yields:
        One check a stage, as soon as it is known.
    """
    run = Runner(device, precision, reference)
    yield from _schedule(run)
    encoders = _encoders(run)
    yield from _text(run, encoders)
    mmdit, vae = _mmdit(run), _vae(run)
    yield from _transformer(run, mmdit)
    yield from _autoencoder(run, vae)
    yield from _generation(run, encoders, mmdit, vae)


def _shapes(reference: Reference) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in reference.weights.items()}


def _encoders(run: Runner) -> dict[str, nn.Module]:
    encoders: dict[str, nn.Module] = {}
    for name in CLIPS:
        stored = run.reference[name]
        activation = stored.config["hidden_act"]
        config = CLIPConfig.from_shapes(_shapes(stored), activation=activation, num_heads=2)
        encoders[name] = run.ready(CLIP(config), name)
    encoders["t5"] = run.ready(T5(T5Config.from_shapes(_shapes(run.reference["t5"]))), "t5")
    return encoders


def _mmdit(run: Runner) -> MMDiT:
    stored = run.reference["mmdit_qknorm_dual"]
    sizes = MMDiTConfig.from_shapes(_shapes(stored))
    # Heads of the stored model are narrower than 64, which no shape tells.
    return run.ready(
        MMDiT(replace(sizes, num_heads=stored.config["sizes"]["num_heads"])), "mmdit_qknorm_dual"
    )


def _vae(run: Runner) -> VAE:
    return run.ready(VAE(VAEConfig.from_shapes(_shapes(run.reference["vae"]))), "vae")


def _schedule(run: Runner) -> Iterator[Check]:
    expected = run.reference["schedules"]["shift3/steps28/sigmas"]
    run.start()
    yield run.equal("schedule", "28 noise levels", flow.sigmas(28, 3.0, "diffusers"), expected)


def _text(run: Runner, encoders: Mapping[str, nn.Module]) -> Iterator[Check]:
    for name in CLIPS:
        (ids,) = run.given(name, "ids")
        run.start()
        output = encoders[name](ids)
        for stage in ("penultimate", "pooled"):
            expected = run.reference[name][f"out64/{stage}"]
            yield run.check(name, stage, getattr(output, stage), expected, "text")
    (ids,) = run.given("t5", "ids")
    run.start()
    yield run.check("t5", "last", encoders["t5"](ids), run.reference["t5"]["out64/last"], "text")


def _transformer(run: Runner, mmdit: MMDiT) -> Iterator[Check]:
    name = "mmdit_qknorm_dual"
    inputs = run.given(name, "latents", "sigma", "context", "pooled")
    expected = run.reference[name].under("act64/") | {"output": run.reference[name]["out64/velocity"]}
    with run.timed_taps(mmdit, expected) as taken:
        mmdit(*inputs)
    velocity, seconds = taken.pop("output")
    taken["velocity"] = velocity, seconds
    expected["velocity"] = expected.pop("output")
    yield from run.tapped("mmdit", taken, expected, "mmdit")


def _autoencoder(run: Runner, vae: VAE) -> Iterator[Check]:
    expected = run.reference["vae"].under("act64/")
    image, latents = run.given("vae", "image", "latents")
    sides = {
        side: [name for name in expected if name.startswith(f"{side}.")] for side in ("encoder", "decoder")
    }
    with run.timed_taps(vae, sides["encoder"]) as taken:
        mean, logvar = vae.moments(image)
    yield from run.tapped("vae", taken, expected, "vae")
    yield run.check("vae", "mean", mean, run.reference["vae"]["out64/mean"], "vae")
    yield run.check("vae", "logvar", logvar, run.reference["vae"]["out64/logvar"], "vae")
    with run.timed_taps(vae, sides["decoder"]) as taken:
        image = vae.decode(latents)
    yield from run.tapped("vae", taken, expected, "vae")
    yield run.check("vae", "image", image, run.reference["vae"]["out64/decoded"], "vae")


def _generation(run: Runner, encoders: Mapping[str, nn.Module], mmdit: MMDiT, vae: VAE) -> Iterator[Check]:
    stored = run.reference["trajectory"]
    ids = {name: tensor[:2].to(run.device) for name, tensor in stored.under("ids/").items()}
    noise, sigmas = run.given("trajectory", "noise", "sigmas")
    run.start()
    context, pooled = assemble(*(encoders[name](ids[name]) for name in (*CLIPS, "t5")))
    cond, uncond = (
        Encoding(context[i : i + 1], pooled[i : i + 1], (Prompt(),), ((),), (), "diffusers") for i in (0, 1)
    )
    velocity = GuidedVelocity(mmdit, [cond], uncond, stored.config["guidance_scale"])
    steps = flow.euler(velocity, noise, sigmas)
    step = next(steps)
    expected = stored["out64/velocity_guided"]
    yield run.check("generation", "guided velocity, step 0", step.velocity, expected, "generation")
    *_, step = steps
    states = stored["out64/trajectory"]
    stage = f"latents after {len(states)} steps"
    yield run.check("generation", stage, step.x, states[-1:], "generation")
    yield run.check("generation", "picture", vae.decode(step.x), stored["out/image"], "generation")
