#!/usr/bin/env python3
"""Times PyTorch's attention on a GPU, on the shapes and under the names of test.attention.cuda_bench.

A peer script: neither the build nor CI needs it. It wants PyTorch with CUDA:

    python3 tests/peers/torch_cuda_attention.py [--only TEXT] [--json FILE] [--results FILE]

Dense, causal and decode rows run scaled_dot_product_attention once with each of its backends (FlashAttention-2 and
cuDNN; f32: the memory-efficient one and the plain one); windows and random blocks run FlexAttention with a block mask
built before the timing. Rates count exact pairs (random blocks: visited ones), 4 D FLOPs each; decode counts the bytes
of K and V. With --results, the file that `attnbench run suites/engine/cuda_attention.yaml` wrote on the same card, the
suite's own block-sparse shapes are timed instead, and each row ends with how many times faster attnbench was. One sample is a run of calls of 5 ms or more between two events; the median of 15 is shown. The last rows
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


def random_rows(rows, sparsity, causal):
    """Key blocks of each row of blocks, drawn as the suite's random_blocks counts them (other seeds)."""
    torch.manual_seed(7)
    lists = []
    for r in range(rows):
        allowed = r + 1 if causal else rows
        count = max(1, int((1 - sparsity) * allowed + 0.5))
        picks = torch.randperm(r if causal else rows)[:count - 1 if causal else count].tolist()
        lists.append(sorted(picks) + ([r] if causal else []))
    return lists


def power_rows(rows):
    return [[c for c in range(r + 1) if c == 0 or r - c < 5 or (r - c) & (r - c - 1) == 0] for r in range(rows)]


def suite_rows():
    """case of the suite, its axes, heads, tokens and a function that makes FlexAttention's mask."""
    from torch.nn.attention.flex_attention import BlockMask

    def band(w):
        return lambda b, h, i, j: (j <= i) & (j > i - w)

    def tensors(lists):
        index = torch.zeros(1, 1, len(lists), len(lists), dtype=torch.int32)
        for r, x in enumerate(lists):
            index[0, 0, r, :len(x)] = torch.tensor(x, dtype=torch.int32)
        return torch.tensor([[[len(x) for x in lists]]], dtype=torch.int32, device="cuda"), index.cuda()

    def by_rule(rule, n, block=128):
        """One row of blocks after another: FlexAttention's own function holds the whole square of pairs."""
        def mask():
            part, full = [], []
            keys = torch.arange(n, device="cuda")
            for row in range(0, n, block):
                seen = rule(0, 0, torch.arange(row, row + block, device="cuda")[:, None], keys).view(block, -1, block)
                whole, some = seen.all(2).all(0), seen.any(2).any(0)
                full.append(whole.nonzero().flatten().tolist())
                part.append((some & ~whole).nonzero().flatten().tolist())
            return BlockMask.from_kv_blocks(*tensors(part), *tensors(full), BLOCK_SIZE=block, mask_mod=rule)
        return mask

    def by_lists(make, n, block, causal):
        def mask():
            lists = make()
            full = [x[:-1] if causal else x for x in lists]  # a causal row's last block is its diagonal
            part = [[x[-1]] if causal else [] for x in lists]
            return BlockMask.from_kv_blocks(*tensors(part), *tensors(full), BLOCK_SIZE=block,
                                            mask_mod=(lambda b, h, i, j: j <= i) if causal else None)
        return mask

    def window_2d(side, tile, window):  # tokens in the order of tiles, as the suite has them
        across = side // tile[1]

        def place(t):
            number, inside = t // (tile[0] * tile[1]), t % (tile[0] * tile[1])
            return number // across * tile[0] + inside // tile[1], number % across * tile[1] + inside % tile[1]

        def rule(b, h, i, j):
            (iy, ix), (jy, jx) = place(i), place(j)
            y0 = (iy - window // 2).clamp(0, side - window)
            x0 = (ix - window // 2).clamp(0, side - window)
            return (jy >= y0) & (jy < y0 + window) & (jx >= x0) & (jx < x0 + window)
        return rule

    def window_1d(n, window):
        def rule(b, h, i, j):
            start = (i - window // 2).clamp(0, n - window)
            return (j >= start) & (j < start + window)
        return rule

    yield "window_4k", {}, 16, 32768, by_rule(band(4096), 32768)
    yield "window_1k", {}, 16, 131072, by_rule(band(1024), 131072)
    for block in (64, 128):
        yield "blocks", {"block_size": block}, 16, 32768, by_lists(
            lambda block=block: random_rows(32768 // block, 0.9, True), 32768, block, True)
    yield "power_of_two", {}, 16, 131072, by_lists(lambda: power_rows(1024), 131072, 128, True)
    yield "top_blocks", {}, 7, 109632, by_lists(lambda: random_rows(1713, 0.96264, False), 109632, 64, False)
    yield "neighbourhood_13", {}, 16, 16384, by_rule(window_2d(128, (16, 8), 13), 16384)
    yield "line_neighbourhood", {}, 16, 32768, by_rule(window_1d(32768, 2048), 32768)
    yield "flux", {}, 24, 65536, by_rule(window_2d(256, (16, 8), 80), 65536)


def beside(table, results):
    """FlexAttention on the suite's shapes; ours are times of the whole method, token orders included."""
    from torch.nn.attention.flex_attention import flex_attention
    with open(results, encoding="utf-8") as f:
        ours = json.load(f)["cases"]
    for case, axes, h, n, make in suite_rows():
        if not table.wanted(case):
            continue
        torch._dynamo.reset()  # behind a number of masks the compiler would silently run the plain form
        flex = torch.compile(flex_attention, dynamic=False)
        mine = [c for c in ours if c["case"]["base_name"] == case and c.get("time") and
                all(c["case"]["axes"].get("params." + a) == v for a, v in axes.items())]
        row = case + "".join(f" {v}" for v in axes.values())
        q, k, v = (normal(1, h, n, 128) for _ in range(3))
        try:
            mask = make()
            options = {"BLOCK_M": 64, "BLOCK_N": 64} if mask.BLOCK_SIZE[0] < 128 else None
            s = seconds(lambda: flex(q, k, v, block_mask=mask, kernel_options=options))
        except Exception as error:  # a shape that the peer does not take is a row, not an end
            print(f"{row:<24} flex: {str(error).splitlines()[0][:120]}", flush=True)
            torch.cuda.synchronize()
            continue
        own = mine[0]["time"]["median_s"] if mine else float("nan")
        table.rows.append({"name": row, "peer": "flex", "seconds": s, "attnbench_seconds": own})
        print(f"{row:<24} flex {s * 1e3:8.3f} ms   attnbench {own * 1e3:8.3f} ms   {s / own:5.2f} x", flush=True)
        del q, k, v, mask
        torch.cuda.empty_cache()


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
    parser.add_argument("--results", help="attnbench's results of suites/engine/cuda_attention.yaml on this card")
    parser.add_argument("--json", help="also writes the rows here")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    table = Table(args.only)
    with torch.inference_mode():
        if args.results:
            beside(table, args.results)
        else:
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
