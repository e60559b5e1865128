#!/usr/bin/env python3
"""What quantization loses and gains, type by type and method by method, as Markdown tables.

    tests/tools/quality_table.py --tandem target/release/tandem --model MODEL --text TEXT --calibration TEXT2 \\
        --library .../libggml-base.so --out ROWS.jsonl

MODEL is made F32 first, which everything is compared with: KL divergence and top-1 agreement over the first --chunks
windows of TEXT. The importance matrix is of TEXT2, and so are GPTQ's moments; it should be another text. Types are the
same for all tensors (`--pure`); rows that do not divide into a type's blocks get another type, which the bits per weight
show.

The method `gptq imatrix` is GPTQ with the matrix's importance for the embedding.

The methods `llama.cpp` and `llama.cpp imatrix` need llama.cpp's library (compare_encoders.py's --library): each tensor
has the type it has in tandem's file, and its data are what ggml_quantize_chunk makes of the same F32 weights, with the
same importance. Types that it refuses to make without importance have no row without.

Rows go to --out, one JSON object a line, as they are made. Rows that are there already are not made again, so a run that
was stopped goes on, and several runs may make one table, each with its own --methods and --types. What is printed is the
tables of all rows in it.

With --speed, no losses are measured but speeds, which depend on the type only: `bench`'s on the CPU, of a file made by
plain rounding. --bench is the program that does it, where it is not --tandem: a script that first stops whatever else
this machine does, for example.
"""

import argparse
import ctypes as C
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare_encoders import NEED_IMPORTANCE, TYPES as BLOCKS, load

METHODS = ["absmax", "minmax", "search", "imatrix", "gptq", "gptq imatrix", "llama.cpp", "llama.cpp imatrix"]
# By bits per weight.
TYPES = """F16 BF16 Q8_0 Q6_K Q5_1 Q5_K Q5_0 Q4_1 Q4_K Q4_0 IQ4_NL NVFP4 IQ4_XS MXFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS
Q2_0 IQ2_XXS TQ2_0 IQ1_M TQ1_0 IQ1_S Q1_0""".split()
# Mixes whose base type has another name.
MIXES = {"Q5_K": "Q5_K_S", "Q4_K": "Q4_K_S", "Q3_K": "Q3_K_S", "IQ2_S": "IQ2_M"}
# There is nothing to search, and nothing to compare.
FLOATS = {"F16", "BF16"}
# With a minimum, absmax and minmax differ.
WITH_MINIMUM = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
ROWS_AT_ONCE = 4096


def methods(name: str, wanted: list) -> list:
    if name in FLOATS:
        return [method for method in ("search",) if method in wanted]
    without = {"minmax"} if name not in WITH_MINIMUM else set()
    if name in NEED_IMPORTANCE:
        without.add("llama.cpp")
    return [method for method in METHODS if method in wanted and method not in without]


class Tool:
    """The program, and the folder with the F32 copy and the importance matrix."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.base, self.imatrix = folder / "f32.gguf", folder / "imatrix.gguf"
        self.ggml = load(args.library) if args.library else None

    def tandem(self, *rest, program=None) -> str:
        command = [program or self.args.tandem, *map(str, rest)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def prepare(self, with_imatrix: bool) -> None:
        if not self.base.exists():
            self.tandem("quantize", self.args.model, self.base, "F32", "-q")
        if with_imatrix and not self.imatrix.exists():
            self.tandem("imatrix", "-m", self.base, "-f", self.args.calibration, "-o", self.imatrix, "-ngl", 0, "-q")

    def make(self, name: str, method: str) -> Path:
        """The model in a type by a method."""
        out = self.folder / f"{name}-{method.replace(' ', '-')}.gguf"
        if out.exists():
            return out
        if method.startswith("llama.cpp"):
            self.make_theirs(name, method, out)
            return out
        how = [] if method == "imatrix" else ["--method", method.removesuffix(" imatrix")]
        how += ["--imatrix", self.imatrix] if method.endswith("imatrix") else []
        how += ["--calibration", self.args.calibration] if method.startswith("gptq") else []
        self.tandem("quantize", self.base, out, MIXES.get(name, name), "--pure", *how, "-q")
        return out

    def tensors(self, path: Path) -> dict:
        info = json.loads(self.tandem("info", "--tensors", "--json", "-m", path))
        return {tensor["name"]: tensor for tensor in info["tensors"]}

    def floats(self, path: Path, tensor: dict) -> "np.ndarray":
        count = tensor["n_bytes"] // 4
        return np.fromfile(path, np.float32, count, offset=tensor["offset"]).reshape(-1, tensor["shape"][0])

    def make_theirs(self, name: str, method: str, out: Path) -> None:
        """Tandem's file with the data of all tensors that were quantized made anew by llama.cpp."""
        partial = out.with_suffix(".partial")
        shutil.copy(self.make(name, "absmax"), partial)
        importance = self.importance() if method == "llama.cpp imatrix" else {}
        of_base = self.tensors(self.base)
        with partial.open("r+b") as file, ThreadPoolExecutor(2) as pool:
            for tensor in self.tensors(partial).values():
                if tensor["type"] == of_base[tensor["name"]]["type"]:
                    continue
                x = self.floats(self.base, of_base[tensor["name"]])
                w = importance.get(tensor["name"])
                if w is not None and w.shape[1] != x.shape[1]:
                    w = None
                file.seek(tensor["offset"])
                file.write(self.encode(pool, tensor, x, w).tobytes())
        partial.rename(out)

    def encode(self, pool, tensor: dict, x: "np.ndarray", w: "np.ndarray | None") -> "np.ndarray":
        ident, block, size = BLOCKS[tensor["type"]]
        rows, columns = x.shape
        row_bytes = columns // block * size
        data = np.zeros(rows * row_bytes, np.uint8)
        assert data.nbytes == tensor["n_bytes"], tensor
        if w is None and tensor["type"] in NEED_IMPORTANCE:
            w = np.ones((1, columns), np.float32)
        self.ggml.ggml_quantize_init(ident)
        # Rows of each matrix of experts have an importance of their own.
        rows_each = rows if w is None else rows // len(w)

        def piece(first: int) -> None:
            count = min(ROWS_AT_ONCE, rows_each - first % rows_each)
            of = None if w is None else w[first // rows_each].ctypes.data
            source, target = x[first:].ctypes.data, data[first * row_bytes :].ctypes.data
            self.ggml.ggml_quantize_chunk(ident, source, target, 0, count, columns, of)

        firsts = [m + k for m in range(0, rows, rows_each) for k in range(0, rows_each, ROWS_AT_ONCE)]
        list(pool.map(piece, firsts))
        return data

    def importance(self) -> dict:
        """Mean squares of the inputs of each column, as llama-quantize computes them from the file."""
        tensors = self.tensors(self.imatrix)
        out = {}
        for name, tensor in tensors.items():
            if name.endswith(".in_sum2"):
                key = name.removesuffix(".in_sum2")
                counts = self.floats(self.imatrix, tensors[key + ".counts"]).reshape(-1, 1)
                sums = self.floats(self.imatrix, tensor)
                out[key] = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
        return out

    def losses(self, paths: list) -> list:
        """How far models are from the F32 copy."""
        options = ["-f", self.args.text, "--chunks", self.args.chunks, "--tensors", "-ngl", 0, "--json", "-q"]
        found = json.loads(self.tandem("compare", self.base, *paths, *options))
        return found if isinstance(found, list) else [found]

    def speeds(self, name: str) -> dict:
        path = self.base if name == "F32" else self.make(name, "absmax")
        bench = ["bench", "-m", path, "-p", 512, "-n", 64, "-r", 3, "-ngl", 0, "-o", "json", "-q"]
        tests = json.loads(self.tandem(*bench, program=self.args.bench))
        return {test["test"]: test["median"] for test in tests}


def row(name: str, method: str, side: dict, result: dict) -> dict:
    kl = result["kl"]
    # Types differ where something was quantized.
    rmse = {t["name"]: t["rmse"] for t in result["tensors"] if t["type_a"] != t["type_b"]}
    return {
        "type": name, "method": method, "bits_per_weight": side["bits_per_weight"], "bytes": side["file_bytes"],
        "ppl": side["ppl"], "kl": kl["mean"], "kl_stderr": kl["stderr"], "kl_p99": kl["p99"], "top1": result["top1"],
        "chunks": result["n_chunks"], "rmse": rmse,
    }


def measure(tool: Tool, rows: list, add) -> None:
    """Adds the rows of losses that are missing."""
    args = tool.args
    there = {(row["type"], row["method"]) for row in rows if "ppl" in row}
    for name in args.types.split():
        todo = [method for method in methods(name, args.methods.split(",")) if (name, method) not in there]
        if not todo:
            continue
        paths = [tool.make(name, method) for method in todo]
        for method, result in zip(todo, tool.losses(paths)):
            if ("F32", "") not in there:
                there.add(("F32", ""))
                same = {"kl": {"mean": 0, "stderr": 0, "p99": 0}, "top1": 1, "n_chunks": result["n_chunks"], "tensors": []}
                add(row("F32", "", result["a"], same))
            add(row(name, method, result["b"], result))
        if not args.keep:
            for path in tool.folder.glob(f"{name}-*.gguf"):
                path.unlink()


def measure_speeds(tool: Tool, rows: list, add) -> None:
    """Adds the rows of speeds that are missing."""
    there = {row["type"] for row in rows if "pp512" in row}
    for name in ["F32", *tool.args.types.split()]:
        if name not in there:
            add({"type": name} | tool.speeds(name))
            if not tool.args.keep:
                (tool.folder / f"{name}-absmax.gguf").unlink(missing_ok=True)


def table(columns: str, lines: list) -> None:
    print(f"| {columns} |\n" + "|" + "---|" * len(columns.split("|")))
    print("\n".join(f"| {line} |" for line in lines) + "\n")


def show(rows: list) -> None:
    order = {name: i for i, name in enumerate(["F32", *TYPES])}
    losses = [row for row in rows if "ppl" in row]
    losses.sort(key=lambda row: (order[row["type"]], ["", *METHODS].index(row["method"])))
    if losses:
        table("type | method | bits per weight | MiB | PPL | KL mean | KL 99 % | top-1", [
            f"{r['type']} | {r['method'] if r['type'] not in FLOATS else ''} | {r['bits_per_weight']:.2f} "
            f"| {r['bytes'] / 2**20:.0f} | {r['ppl']:.2f} | {r['kl']:.4f} | {r['kl_p99']:.3f} | {100 * r['top1']:.1f} %"
            for r in losses
        ])
    both = {(row["type"], row["method"]): row for row in losses}
    pairs = [(name, ours, theirs) for name in TYPES for ours, theirs in (("search", "llama.cpp"), ("imatrix", "llama.cpp imatrix"))]
    pairs = [(name, ours, both[name, ours], both[name, theirs]) for name, ours, theirs in pairs if (name, ours) in both and (name, theirs) in both]
    if pairs:
        table("type | method | KL, ours / llama.cpp's | standard error | PPL | RMSE, geometric mean | largest | tensors", [
            against(name, ours, a, b) for name, ours, a, b in pairs
        ])
    speeds = sorted((row for row in rows if "pp512" in row), key=lambda row: order[row["type"]])
    if speeds:
        table("type | pp512 | tg64", [f"{r['type']} | {r['pp512']:,.0f} | {r['tg64']:.0f}" for r in speeds])


def against(name: str, method: str, a: dict, b: dict) -> str:
    """Our figures divided by llama.cpp's."""
    error = ((a["kl_stderr"] / a["kl"]) ** 2 + (b["kl_stderr"] / b["kl"]) ** 2) ** 0.5 if a["kl"] else 0
    ratios = [a["rmse"][tensor] / b["rmse"][tensor] for tensor in a["rmse"] if b["rmse"][tensor] > 0]
    mean = np.exp(np.mean(np.log(np.maximum(ratios, 1e-9)))) if ratios else 1
    return (
        f"{name} | {method} | {a['kl'] / max(b['kl'], 1e-12):.3f} | {error:.3f} | {a['ppl'] / b['ppl']:.3f} "
        f"| {mean:.3f} | {max(ratios, default=1):.3f} | {len(ratios)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", help="what losses are measured on")
    parser.add_argument("--calibration", help="what importance and moments are of")
    parser.add_argument("--library", help="libggml-base of llama.cpp; without it, there are no rows of llama.cpp")
    parser.add_argument("--out", type=Path, help="a file of rows, which is added to")
    parser.add_argument("--types", default=" ".join(TYPES), help="names separated by spaces")
    parser.add_argument("--methods", default=",".join(METHODS), help="names separated by commas")
    parser.add_argument("--chunks", default="10", help="windows of 512 tokens compared")
    parser.add_argument("--folder", type=Path, help="where models are made [default: a temporary folder]")
    parser.add_argument("--keep", action="store_true", help="leave them in --folder; such that are there are used")
    parser.add_argument("--speed", action="store_true", help="measure speeds only")
    parser.add_argument("--bench", help="the program that measures speeds [default: --tandem]")
    args = parser.parse_args()
    if not args.library:
        args.methods = ",".join(method for method in args.methods.split(",") if not method.startswith("llama.cpp"))
    if not args.speed and not (args.text and args.calibration):
        parser.error("losses are measured on --text, with --calibration")
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []

    def add(new: dict) -> None:
        rows.append(new)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(new) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        tool = Tool(args, args.folder or Path(temporary))
        tool.prepare(with_imatrix="imatrix" in args.methods and not args.speed)
        (measure_speeds if args.speed else measure)(tool, rows, add)
    show(rows)


try:
    import numpy as np
except ImportError:
    sys.exit("SKIPPED: this table needs numpy")

if __name__ == "__main__":
    main()
