#!/usr/bin/env python3
"""Times PyTorch on a GPU at the cases of attnbench results, and prints both side by side.

A peer script: neither the build nor CI needs it. It wants PyTorch with CUDA and results that were measured on the same
card just before:

    build/cuda/bin/attnbench run suites/engine/cuda_operators.yaml suites/engine/cuda_attention.yaml -o /tmp/r/
    python3 tests/peers/torch_cuda.py /tmp/r/cuda_operators.json /tmp/r/cuda_attention.json [--json peers.json]

Peers: torch.nn.functional.linear for `linear` (f32 without TF32), scaled_dot_product_attention by each of its fused
back ends for `dense`, FlexAttention for `sliding_window` and `random_blocks` (a random pattern of the same density), the
functions of the same name for norms, softmax, pooling and rfft2. Samples are single calls between events, each after a
pass over a buffer larger than the caches, as attnbench samples `cache: cold`; the median of about a second is shown.
A ratio above 1 says that attnbench is the faster one.
"""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}


def median_seconds(work, budget_s):
    """Median of single calls with cold caches, by device events."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    with torch.inference_mode():
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        samples, start = [], time.perf_counter()
        while len(samples) < 10 or time.perf_counter() - start < budget_s:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.sum()
            begin.record()
            work()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(samples)


def randn(*shape, dtype):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def attention_inputs(p, dtype):
    n, m = p["length"], p.get("kv_length") or p["length"]
    h, hkv, d = p["heads"], p.get("kv_heads") or p["heads"], p["head_dim"]
    return (randn(p["batch"], h, n, d, dtype=dtype), randn(p["batch"], hkv, m, d, dtype=dtype),
            randn(p["batch"], hkv, m, d, dtype=dtype))


def dense_peers(p, params, dtype):
    q, k, v = attention_inputs(p, dtype)
    gqa = q.shape[1] != k.shape[1]
    causal = p["causal"] and q.shape[2] > 1
    if causal and q.shape[2] != k.shape[2]:
        return  # PyTorch aligns the other corner
    for name, backend in BACKENDS.items():
        def work(backend=backend):
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
        yield "sdpa " + name, work


def flex_peer(q, k, v, mask_mod):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    mask = create_block_mask(mask_mod, None, None, q.shape[2], k.shape[2], device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def window_peers(p, params, dtype):
    q, k, v = attention_inputs(p, dtype)
    left = params["window"]
    right = params.get("right")
    right = right if right is not None else (0 if p["causal"] else left)
    yield "flex", flex_peer(q, k, v, lambda b, h, i, j: (j >= i - left) & (j <= i + right))


def block_peers(p, params, dtype):
    q, k, v = attention_inputs(p, dtype)
    size, keep = params["block_size"], 1 - params["sparsity"]
    count = math.ceil(p["length"] / size)
    table = torch.zeros(count, count, dtype=torch.bool, device="cuda")
    for row in range(count):
        allowed = row + 1 if p["causal"] else count
        chosen = torch.randperm(allowed)[:max(1, round(keep * allowed))]
        if p["causal"] and row not in chosen:
            chosen[0] = row
        table[row, chosen.to("cuda")] = True
    causal = p["causal"]
    def mod(b, h, i, j):
        listed = table[i // size, j // size]
        return listed & (j <= i) if causal else listed
    yield "flex", flex_peer(q, k, v, mod)


def linear_peers(p, params, dtype):
    x = randn(p["batch"], p["length"], p["channels"], dtype=dtype)
    w = randn(params.get("out") or p["channels"], p["channels"], dtype=dtype)
    yield "linear", lambda: F.linear(x, w)


def norm_peers(p, params, dtype):
    x, gain = randn(p["batch"], p["length"], p["channels"], dtype=dtype), randn(p["channels"], dtype=dtype)
    shape = (p["channels"],)
    if params["kind"] == "layer":
        yield "layer_norm", lambda: F.layer_norm(x, shape, gain, gain)
    else:
        yield "rms_norm", lambda: F.rms_norm(x, shape, gain)


def softmax_peers(p, params, dtype):
    if p["causal"]:
        return
    x = randn(p["batch"], p["heads"], p["length"], p.get("kv_length") or p["length"], dtype=dtype)
    yield "softmax", lambda: torch.softmax(x, -1)


def pool_peers(p, params, dtype):
    x = randn(p["batch"], p["channels"], *p["grid"], dtype=dtype).to(memory_format=torch.channels_last)
    yield "avg_pool2d", lambda: F.avg_pool2d(x, params["window"])


def spectrum_peers(p, params, dtype):
    x = randn(p["batch"], p["channels"], *p["size"], dtype=dtype)
    yield "rfft2", lambda: torch.fft.rfft2(x)


PEERS = {"dense": dense_peers, "sliding_window": window_peers, "random_blocks": block_peers, "linear": linear_peers,
         "norm": norm_peers, "row_softmax": softmax_peers, "avg_pool": pool_peers, "spectrum": spectrum_peers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+")
    parser.add_argument("--seconds", type=float, default=0.5, help="a peer's sampling time")
    parser.add_argument("--filter", default="", help="only cases whose name holds this")
    parser.add_argument("--json", help="where to write what was measured")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)

    card = torch.cuda.get_device_name(0)
    print(f"torch {torch.__version__} on {card}")
    print(f"{'case':<46} {'attnbench ms':>12} {'peer':<16} {'ms':>9} {'TFLOP/s':>9} {'ratio':>6}")
    rows, done = [], {}
    for file in args.results:
        with open(file, encoding="utf-8") as f:
            run = json.load(f)
        gpu = run["environment"]["values"].get("gpu", "")
        if card not in str(gpu):
            raise SystemExit(f"{file}: measured on '{gpu}', and this is {card}")
        for c in run["cases"]:
            spec = c["case"]
            if spec["device"] != "cuda" or not c["time"] or spec["method"] not in PEERS or args.filter not in spec["name"]:
                continue
            ours = c["time"]["median_s"]
            params = {k: v for k, v in c["params"].items() if k != "impl"}
            # Engine and cuDNN cases of one shape share their peers.
            key = json.dumps([spec["method"], spec["problem"], params], sort_keys=True)
            if key not in done:
                done[key] = {}
                for name, work in PEERS[spec["method"]](spec["problem"], params, DTYPES[spec["problem"]["dtype"]]):
                    try:
                        done[key][name] = median_seconds(work, args.seconds)
                    except RuntimeError as e:
                        print(f"{spec['name']:<46} {name} refuses: {str(e).splitlines()[0][:90]}")
                torch.cuda.empty_cache()
            for name, seconds in done[key].items():
                rate = c["counted"]["flops"] / seconds * 1e-12
                rows.append({"file": file, "case": spec["name"], "attnbench_s": ours, "peer": name, "peer_s": seconds,
                             "ratio": seconds / ours})
                print(f"{spec['name']:<46} {ours * 1e3:>12.4f} {name:<16} {seconds * 1e3:>9.4f} {rate:>9.1f} "
                      f"{seconds / ours:>6.2f}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"torch": torch.__version__, "card": card, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
