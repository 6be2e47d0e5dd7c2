#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention on the CPU beside attnbench's dense attention, shape by shape.

A peer script: neither the build nor CI needs it. It wants PyTorch (pip install torch) and a built program:

    python3 tests/peers/torch_cpu.py [--program build/release/bin/attnbench] [--threads 1 2] [--dtype f32]

The shapes are the `dense` cases of suites/engine/cpu_attention.yaml (D 64 and 128, N 1K and 4K, causal or not). Both
sides take their turns shape by shape, rounds A B A B, and the median of each is shown; rates count the exact causal
pairs, 4 D FLOPs each.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def attnbench_seconds(program, threads, dtype, d, n, causal):
    """Median seconds of one dense case, by the program itself."""
    name = "dense" if dtype == "f32" else "dense_bf16"
    case = f"{name}/head_dim={d}/causal={str(causal).lower()}/length={n}/heads={4096 // n}"
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [program, "run", str(ROOT / "suites/engine/cpu_attention.yaml"), "--filter", case,
             "--threads", str(threads), "--set", "defaults.max_time=1s", "--json", "--quiet",
             "-o", str(pathlib.Path(folder) / "run.json")],
            capture_output=True, text=True, check=False)
    # Exit status 1 only says that a claim of the suite is outside; the measurement is there.
    if run.returncode not in (0, 1):
        raise SystemExit(f"{case}: {run.stderr.strip()}")
    return json.loads(run.stdout)["cases"][0]["time"]["median_s"]


def torch_seconds(q, k, v, causal):
    """Median seconds of SDPA over about one second, after a warm-up."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        for _ in range(3):
            sdpa(q, k, v, is_causal=causal)
        samples, start = [], time.perf_counter()
        while len(samples) < 10 or time.perf_counter() - start < 1.0:
            t = time.perf_counter()
            sdpa(q, k, v, is_causal=causal)
            samples.append(time.perf_counter() - t)
    return statistics.median(samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/attnbench"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    print(f"torch {torch.__version__}, {args.dtype}, {args.rounds} rounds; GFLOP/s")
    print(f"{'threads':>7} {'D':>4} {'N':>5} {'causal':>6} {'attnbench':>10} {'torch':>8} {'ratio':>6}")
    behind = 0
    for threads in args.threads:
        torch.set_num_threads(threads)
        for d in (64, 128):
            for n in (1024, 4096):
                for causal in (False, True):
                    heads = 4096 // n
                    torch.manual_seed(0)
                    q, k, v = (torch.randn(1, heads, n, d, dtype=DTYPES[args.dtype]) for _ in range(3))
                    ours, theirs = [], []
                    for _ in range(args.rounds):
                        ours.append(attnbench_seconds(args.program, threads, args.dtype, d, n, causal))
                        theirs.append(torch_seconds(q, k, v, causal))
                    pairs = heads * (n * (n + 1) // 2 if causal else n * n)
                    a, t = (4 * d * pairs / statistics.median(s) * 1e-9 for s in (ours, theirs))
                    behind += a < t
                    print(f"{threads:>7} {d:>4} {n:>5} {str(causal):>6} {a:>10.1f} {t:>8.1f} {a / t:>6.2f}", flush=True)
    print(f"behind PyTorch at {behind} shapes")


if __name__ == "__main__":
    main()
