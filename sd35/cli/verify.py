"""Prove that this machine computes what the references compute, and check a checkpoint.

Small models with known weights are run here, and every stage is compared with what diffusers and
transformers gave in float64. With --model, the files of a model are checked too: keys, shapes, finite
values, and the stored position table against the computed one.

The exit status is 0 where everything passes, and 1 where anything fails.
"""

import argparse
import time

SUMMARY = "compare this machine with stored reference activations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (the default): the fastest there is"
    )
    parser.add_argument(
        "--dtype", default="float32", help="float32 (the default), bfloat16, float16 or float64"
    )
    parser.add_argument(
        "-m",
        "--model",
        metavar="SOURCE",
        help="also check this model: tiny, a .safetensors file, a folder, or owner/name[@revision]",
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    import torch

    from ..device import as_device
    from ..verify import as_table, check_checkpoint, load_reference, precision_of, run_stages

    device = as_device(args.device)
    precision = precision_of(args.dtype, device)
    checkpoint = None if args.model is None else check_checkpoint(args.model)
    reference = load_reference()
    versions = reference["trajectory"].config["made_with"]
    print(f"{precision.name} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"against diffusers {versions['diffusers']} and transformers {versions['transformers']}, in float64\n"
    )
    begin = time.perf_counter()
    checks = list(run_stages(reference, device, precision))
    print(as_table(checks))
    failed = [f"{check.group} {check.stage}" for check in checks if not check.passed]
    print(f"\n{_verdict(len(checks), failed, 'stages')} in {time.perf_counter() - begin:.2f} s")
    if checkpoint is None:
        return 1 if failed else 0

    findings = []
    print(f"\n{args.model}")
    for finding in checkpoint:
        findings.append(finding)
        verdict = {True: "pass", False: "FAIL", None: "note"}[finding.passed]
        print(f"  {finding.part:<8}{finding.check:<17}{verdict}  {finding.result}  ({finding.seconds:.2f} s)")
    wrong = [f"{finding.part} {finding.check}" for finding in findings if finding.passed is False]
    print(f"\n{_verdict(len(findings), wrong, 'checks')}")
    return 1 if failed or wrong else 0


def _verdict(total: int, failed: list[str], what: str) -> str:
    if not failed:
        return f"all {total} {what} pass"
    return f"{len(failed)} of {total} {what} FAIL, the first of them: {failed[0]}"
