#!/usr/bin/env python3
"""Times PyTorch's attention on a GPU, on the shapes and under the names of test.attention.cuda_bench.

A peer script: neither the build nor CI needs it. It wants PyTorch with CUDA:

    python3 tests/peers/torch_cuda_attention.py [--only TEXT] [--json FILE]

Dense, causal and decode rows run scaled_dot_product_attention once with each of its backends (FlashAttention-2 and
cuDNN; f32: the memory-efficient one and the plain one); windows and random blocks run FlexAttention with a block mask
built before the timing. Rates count exact pairs (random blocks: visited ones), 4 D FLOPs each; decode counts the bytes
of K and V. One sample is a run of calls of 5 ms or more between two events; the median of 15 is shown. The last rows
are f32 matrix products, full and TF32: what f32 attention is measured against.
"""
import argparse
import json

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SDPA = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}


def seconds(call):
    def sample(calls):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / calls
    sample(3)
    calls = max(1, min(200, int(5e-3 / sample(2))))
    return sorted(sample(calls) for _ in range(15))[7]


class Table:
    def __init__(self, only):
        self.only, self.rows = only, []

    def wanted(self, name):
        return self.only is None or self.only in name

    def add(self, name, peer, work, unit, call):
        try:
            s = seconds(call)
        except Exception as error:  # a backend that does not take the shape is a row, not an end
            print(f"{name:<46} {'-':>10}    {'-':>8} {unit}  {peer}: {str(error).splitlines()[0][:90]}", flush=True)
            torch.cuda.synchronize()
            return
        self.rows.append({"name": name, "peer": peer, "seconds": s, "rate": work / s, "unit": unit.strip()})
        print(f"{name:<46} {s * 1e6:>10.1f} us {work / s:>8.1f} {unit}  {peer}", flush=True)

    def add_sdpa(self, name, peers, work, unit, q, k, v, **options):
        for peer in peers:
            def call():
                with sdpa_kernel(SDPA[peer]):
                    sdpa(q, k, v, **options)
            self.add(name, peer, work, unit, call)


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def dense(table):
    for name, dtype in DTYPES.items():
        for d in (64, 128, 256):
            for n in (1024, 4096, 16384):
                for causal in (False, True):
                    row = f"dense {name} D={d} N={n}{' causal' if causal else ''}"
                    if (name != "bf16" or d == 256) and n != 4096 or not table.wanted(row):
                        continue
                    b, h = 16384 // n, 2048 // d
                    q, k, v = (normal(b, h, n, d, dtype=dtype) for _ in range(3))
                    pairs = n * (n + 1) / 2 if causal else n * n
                    peers = ("efficient", "math") if name == "f32" else ("flash", "cudnn")
                    table.add_sdpa(row, peers, 4e-12 * b * h * d * pairs, "TFLOP/s", q, k, v, is_causal=causal)


def sparse(table):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention, BlockMask
    flex = torch.compile(flex_attention, dynamic=False)
    n = 16384
    for d in (64, 128):
        row, w, h = f"window 1024 causal D={d} N={n}", 1024, 2048 // d
        if table.wanted(row):
            q, k, v = (normal(1, h, n, d) for _ in range(3))
            mask = create_block_mask(lambda b, h, i, j: (j <= i) & (j > i - w), None, None, n, n, device="cuda")
            pairs = w * n - w * (w - 1) / 2
            table.add(row, "flex", 4e-12 * h * d * pairs, "TFLOP/s", lambda: flex(q, k, v, block_mask=mask))
    for block in (64, 128):
        for d in (64, 128):
            row, h = f"random blocks 90% block {block} D={d} N={n}", 2048 // d
            if not table.wanted(row):
                continue
            rows = n // block
            take = rows // 10
            q, k, v = (normal(1, h, n, d) for _ in range(3))
            torch.manual_seed(7)
            picks = torch.rand(1, h, rows, rows, device="cuda").argsort(-1)
            picks[..., :take] = picks[..., :take].sort(-1).values
            full_count = torch.full((1, h, rows), take, dtype=torch.int32, device="cuda")
            none = torch.zeros_like(full_count)
            mask = BlockMask.from_kv_blocks(none, picks.to(torch.int32), full_count, picks.to(torch.int32),
                                            BLOCK_SIZE=block)
            table.add(row, "flex", 4e-12 * h * d * rows * take * block * block, "TFLOP/s",
                      lambda: flex(q, k, v, block_mask=mask))


def decode(table):
    for group in (1, 8):
        for b in (1, 16):
            m, hkv, d = 131072 // b, 8, 128
            row = f"decode M={m} B={b} Hkv=8 D=128 group {group}"
            if table.wanted(row):
                q, k, v = normal(b, hkv * group, 1, d), normal(b, hkv, m, d), normal(b, hkv, m, d)
                work = 1e-9 * 2 * (k.numel() + v.numel())
                table.add_sdpa(row, ("flash", "cudnn"), work, "GB/s   ", q, k, v, enable_gqa=group > 1)


def products(table):
    for tf32 in (False, True):
        row = "gemm f32 4096^3"
        if table.wanted(row):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = normal(4096, 4096, dtype=torch.float32), normal(4096, 4096, dtype=torch.float32)
            table.add(row, "tf32" if tf32 else "f32", 2e-12 * 4096 ** 3, "TFLOP/s", lambda: torch.mm(a, b))
    torch.backends.cuda.matmul.allow_tf32 = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows whose name holds this text")
    parser.add_argument("--json", help="also writes the rows here")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    table = Table(args.only)
    with torch.inference_mode():
        dense(table)
        decode(table)
        products(table)
        sparse(table)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"torch": torch.__version__, "device": torch.cuda.get_device_name(), "rows": table.rows}, f,
                      indent=1)


if __name__ == "__main__":
    main()
