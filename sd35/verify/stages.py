"""Computing the stored activations again, from token ids to pixels."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

import flow
from mmdit import MMDiT, MMDiTConfig
from textenc import CLIP, T5, CLIPConfig, CLIPOutput, Encoding, Prompt, T5Config, assemble
from vae import VAE, VAEConfig

from ..velocity import GuidedVelocity
from .bounds import Precision, precision_of
from .reference import Reference
from .rounding import rounding_reach
from .runner import Check, Runner
from .sinusoids import difference, reach, standing_in

ENCODERS = ("clip_l", "clip_g", "t5")
POOLED = ("penultimate", "pooled")
TRANSFORMER = "mmdit_qknorm_dual"


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
    encoders = {name: _encoder(run, name) for name in ENCODERS}
    yield from _text(run, encoders)
    mmdit, vae = _mmdit(run), _vae(run)
    yield from _transformer(run, mmdit)
    yield from _autoencoder(run, vae)
    yield from _generation(run, encoders, mmdit, vae)


def _shapes(reference: Reference) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in reference.weights.items()}


def _encoder(run: Runner, name: str) -> nn.Module:
    stored = run.reference[name]
    if name == "t5":
        return run.ready(T5(T5Config.from_shapes(_shapes(stored))), name)
    activation = stored.config["hidden_act"]
    config = CLIPConfig.from_shapes(_shapes(stored), activation=activation, num_heads=2)
    return run.ready(CLIP(config), name)


def _mmdit(run: Runner, dtype: torch.dtype | None = None) -> MMDiT:
    stored = run.reference[TRANSFORMER]
    sizes = MMDiTConfig.from_shapes(_shapes(stored))
    # Heads of the stored model are narrower than 64, which no shape tells.
    return run.ready(MMDiT(replace(sizes, num_heads=stored.config["sizes"]["num_heads"])), TRANSFORMER, dtype)


def _vae(run: Runner) -> VAE:
    return run.ready(VAE(VAEConfig.from_shapes(_shapes(run.reference["vae"]))), "vae")


def _schedule(run: Runner) -> Iterator[Check]:
    expected = run.reference["schedules"]["shift3/steps28/sigmas"]
    run.start()
    yield run.equal("schedule", "28 noise levels", flow.sigmas(28, 3.0, "diffusers"), expected)


def _text(run: Runner, encoders: Mapping[str, nn.Module]) -> Iterator[Check]:
    for name, stages in {"clip_l": POOLED, "clip_g": POOLED, "t5": ("last",)}.items():
        (ids,) = run.given(name, "ids")
        bounds = _rounding(run, name) if run.precision.dtype == torch.float32 else {}
        run.start()
        output = _stages(encoders[name](ids))
        for stage in stages:
            expected = run.reference[name][f"out64/{stage}"]
            yield run.check(name, stage, output[stage], expected, bounds.get(stage, "text"))


def _stages(output: CLIPOutput | Tensor) -> dict[str, Tensor]:
    return {"last": output} if isinstance(output, Tensor) else output._asdict()


def _rounding(run: Runner, name: str) -> dict[str, float]:
    """The bounds of a text encoder in float32."""
    cpu = Runner(torch.device("cpu"), precision_of("float64", torch.device("cpu")), run.reference)
    encoder, ids = _encoder(cpu, name), run.reference[name]["in/ids"]
    return rounding_reach(lambda: _stages(encoder(ids)))


def _transformer(run: Runner, mmdit: MMDiT) -> Iterator[Check]:
    """Every block from the stored sinusoids, those of this machine, and the velocity from those."""
    inputs = tuple(run.given(TRANSFORMER, "latents", "sigma", "context", "pooled"))
    stored, sinusoids = run.reference[TRANSFORMER], run.sinusoids(TRANSFORMER, "sigma")
    expected = stored.under("act64/") | {"output": stored["out64/velocity"]}
    with (
        standing_in(mmdit.t_embedder.mlp, sinusoids) as computed,
        run.timed_taps(mmdit, expected) as taken,
    ):
        mmdit(*inputs)
    yield run.check_sinusoids("mmdit", computed[0], sinusoids)
    velocity, seconds = taken.pop("output")
    taken["velocity"] = velocity, seconds
    expected["velocity"] = expected.pop("output")
    yield from run.tapped("mmdit", taken, expected, "mmdit")

    run.start()
    velocity = mmdit(*inputs)
    moved, _ = difference(computed[0], sinusoids)
    fine = _mmdit(run, torch.float32)
    far = reach(fine.t_embedder.mlp, sinusoids, moved, lambda: fine(*inputs))
    yield run.check("mmdit", "velocity, from sigma", velocity, expected["velocity"], "mmdit", far)


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
    stored, sinusoids = run.reference["trajectory"], run.sinusoids("trajectory", "sigmas")
    noise, sigmas = run.given("trajectory", "noise", "sigmas")
    run.start()
    cond, uncond = _encodings(run, encoders)

    def euler(mmdit: MMDiT) -> Iterator[flow.Step]:
        velocity = GuidedVelocity(mmdit, [cond], uncond, stored.config["guidance_scale"])
        return flow.euler(velocity, noise, sigmas)

    with standing_in(mmdit.t_embedder.mlp, sinusoids) as both_branches:
        step, *_, last = euler(mmdit)
    computed = torch.cat([features[:1] for features in both_branches])
    yield run.check_sinusoids("generation", computed, sinusoids)
    states = stored["out64/trajectory"]
    expected = stored["out64/velocity_guided"]
    yield run.check("generation", "guided velocity, step 0", step.velocity, expected, "generation")
    stage = f"latents after {len(states)} steps"
    yield run.check("generation", stage, last.x, states[-1:], "generation")
    yield run.check("generation", "picture", vae.decode(last.x), stored["out/image"], "generation")

    *_, last = euler(mmdit)
    moved, _ = difference(computed, sinusoids)
    fine = _mmdit(run, torch.float32)
    far = reach(fine.t_embedder.mlp, sinusoids, moved, lambda: [*euler(fine)][-1].x, draws=4)
    yield run.check("generation", f"{stage}, from sigma", last.x, states[-1:], "generation", far)


def _encodings(run: Runner, encoders: Mapping[str, nn.Module]) -> tuple[Encoding, Encoding]:
    """The prompt's encoding, and that of the negative prompt."""
    ids = {
        name: tensor[:2].to(run.device) for name, tensor in run.reference["trajectory"].under("ids/").items()
    }
    context, pooled = assemble(*(encoders[name](ids[name]) for name in ENCODERS))
    cond, uncond = (
        Encoding(context[i : i + 1], pooled[i : i + 1], (Prompt(),), ((),), (), "diffusers") for i in (0, 1)
    )
    return cond, uncond
