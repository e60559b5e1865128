#!/usr/bin/env python3
"""What quantization loses and gains, type by type and method by method, as a Markdown table.

    tests/tools/quality_table.py --tandem target/release/tandem --model MODEL --text TEXT --calibration TEXT2

MODEL is made F32 first, which everything is compared with: KL divergence and top-1 agreement over the first --chunks
windows of TEXT. The importance matrix is of TEXT2, and so are GPTQ's moments; it should be another text. Speeds are
`bench`'s on the CPU: run it on a quiet machine, or with --no-speed. Types are the same for all tensors (`--pure`); rows that do not divide into a type's blocks get
another type, which the bits per weight show.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# With a minimum, absmax and minmax differ.
WITH_MINIMUM = {"Q4_1", "Q5_1", "Q2_K", "Q4_K_S", "Q5_K_S"}
TYPES = "Q8_0 Q6_K Q5_K_S Q5_1 Q5_0 Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4 Q3_K_S IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS IQ2_XXS Q2_0 TQ2_0 IQ1_M IQ1_S Q1_0"


# Weights have no quants of their own: GPTQ would only search.
WITHOUT_GPTQ = {"IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0"}


def methods(name: str, wanted: list) -> list:
    all_of_type = ["absmax"] + ["minmax"] * (name in WITH_MINIMUM) + ["search", "imatrix"]
    return [method for method in all_of_type + ["gptq"] * (name not in WITHOUT_GPTQ) if method in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--types", default=TYPES, help="names separated by spaces")
    parser.add_argument("--methods", default="absmax minmax search imatrix gptq", help="names separated by spaces")
    parser.add_argument("--no-speed", action="store_true", help="leave the speeds out")
    parser.add_argument("--chunks", default="10", help="windows of 512 tokens compared")
    args = parser.parse_args()

    def tandem(*rest) -> str:
        done = subprocess.run([args.tandem, *map(str, rest)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"tandem {' '.join(map(str, rest))}: {done.stderr}")
        return done.stdout

    def row(label: str, method: str, path: Path, base: Path) -> str:
        result = json.loads(
            tandem("compare", base, path, "-f", args.text, "--chunks", args.chunks, "-ngl", 0, "--json", "-q")
        )
        speeds = ""
        if not args.no_speed:
            tests = json.loads(tandem("bench", "-m", path, "-p", 512, "-n", 64, "-r", 2, "-ngl", 0, "-o", "json", "-q"))
            speed = {test["test"]: test["median"] for test in tests}
            speeds = f" {speed['pp512']:,.0f} | {speed['tg64']:.0f} |"
        b, kl = result["b"], result["kl"]
        return (
            f"| {label} | {method} | {b['bits_per_weight']:.2f} | {b['file_bytes'] / 2**20:.0f} | {b['ppl']:.2f} "
            f"| {kl['mean']:.4f} | {kl['p99']:.3f} | {100 * result['top1']:.1f} % |{speeds}"
        )

    with tempfile.TemporaryDirectory() as folder:
        base, imatrix, out = (Path(folder) / name for name in ("f32.gguf", "imatrix.gguf", "out.gguf"))
        tandem("quantize", args.model, base, "F32", "-q")
        tandem("imatrix", "-m", base, "-f", args.calibration, "-o", imatrix, "-ngl", 0, "-q")
        columns = "type | method | bits per weight | MiB | PPL | KL mean | KL 99 % | top-1" + " | pp512 | tg64" * (not args.no_speed)
        print(f"| {columns} |")
        print("|" + "---|" * len(columns.split("|")))
        print(row("F32", "", base, base), flush=True)
        for name in args.types.split():
            for method in methods(name, args.methods.split()):
                how = ["--imatrix", imatrix] if method == "imatrix" else ["--method", method]
                how += ["--calibration", args.calibration] if method == "gptq" else []
                tandem("quantize", base, out, name, "--pure", *how, "-q")
                print(row(name, method, out, base), flush=True)
                out.unlink()


if __name__ == "__main__":
    main()
