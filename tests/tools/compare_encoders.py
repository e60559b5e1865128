#!/usr/bin/env python3
"""Errors of `tandem quantize` beside those of llama.cpp's ggml_quantize_chunk, type by type, as a Markdown table.

    tests/tools/compare_encoders.py --tandem target/release/tandem --library .../libggml-base.so [--f32 FILE COLUMNS]...

Both quantize the same matrix; ggml's own decoder turns both results into weights again, so this also shows that ggml
reads what tandem writes. Printed are tandem's RMSE divided by llama.cpp's: without an importance matrix, and with one
(columns log-normal, sigma 1.5), errors weighted by it. At most 1.000 is the aim. Matrices: 256 x 1024 random numbers,
normal and Student-t with 4 degrees of freedom; with --f32, the first --rows rows of files of little-endian floats, as
`tandem info --dump-tensor` writes them. Where neither loses anything, 1.000 is printed. With --square, errors without
an importance matrix are weighted by the weights' squares, as llama.cpp does for some types.
"""

import argparse
import ctypes as C
import os
import struct
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    sys.exit("SKIPPED: this comparison needs numpy")

# Type ids of GGUF, blocks' weights and bytes.
TYPES = {
    "Q1_0": (41, 128, 18), "IQ1_S": (19, 256, 50), "TQ1_0": (34, 256, 54), "IQ1_M": (29, 256, 56),
    "IQ2_XXS": (16, 256, 66), "TQ2_0": (35, 256, 66), "Q2_0": (42, 64, 18), "IQ2_XS": (17, 256, 74),
    "IQ2_S": (22, 256, 82), "Q2_K": (10, 256, 84), "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110),
    "Q3_K": (11, 256, 110), "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
    "Q4_0": (2, 32, 18), "IQ4_NL": (20, 32, 18), "Q4_K": (12, 256, 144), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_K": (13, 256, 176), "Q5_1": (7, 32, 24), "Q6_K": (14, 256, 210), "Q8_0": (8, 32, 34),
}
# ggml refuses these without importance; it gets ones.
NEED_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"}
NAME = b"blk.0.ffn_up.weight"


class Traits(C.Structure):
    _fields_ = [("name", C.c_char_p), ("block", C.c_int64), ("interleave", C.c_int64), ("bytes", C.c_size_t),
                ("is_quantized", C.c_bool), ("to_float", C.c_void_p), ("from_float_ref", C.c_void_p)]


def load(path):
    ggml = C.CDLL(path)
    ggml.ggml_quantize_chunk.argtypes = [C.c_int, C.c_void_p, C.c_void_p] + 3 * [C.c_int64] + [C.c_void_p]
    ggml.ggml_quantize_chunk.restype = C.c_size_t
    ggml.ggml_get_type_traits.restype = C.POINTER(Traits)
    return ggml


def decode(ggml, ty, raw, n):
    out = np.empty(n, np.float32)
    to_float = C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_int64)(ggml.ggml_get_type_traits(TYPES[ty][0]).contents.to_float)
    to_float(raw.ctypes.data, out.ctypes.data, n)
    return out


def theirs(ggml, ty, x, w):
    rows, cols = x.shape
    ident, block, size = TYPES[ty]
    if w is None and ty in NEED_IMPORTANCE:
        w = np.ones(cols, np.float32)
    out = np.zeros(x.size // block * size, np.uint8)
    ggml.ggml_quantize_chunk(ident, x.ctypes.data, out.ctypes.data, 0, rows, cols, None if w is None else w.ctypes.data)
    return decode(ggml, ty, out, x.size).reshape(x.shape)


def string(text):
    return struct.pack("<Q", len(text)) + text


def write_model(path, x):
    rows, cols = x.shape
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
    header += string(NAME) + struct.pack("<IQQIQ", 2, cols, rows, 0, 0)
    with open(path, "wb") as file:
        file.write(header.ljust((len(header) + 31) // 32 * 32, b"\0") + x.tobytes())


def ours(ggml, tandem, folder, ty, x, w):
    model, out, imatrix = (os.path.join(folder, name) for name in ("in.gguf", "out.gguf", "imatrix.dat"))
    write_model(model, x)
    if os.path.exists(out):
        os.remove(out)
    args = [tandem, "quantize", model, out, "Q8_0", "--tensor-type", ".=" + ty, "-q"]
    if w is not None:
        with open(imatrix, "wb") as file:
            file.write(struct.pack("<ii", 1, len(NAME)) + NAME + struct.pack("<ii", 1, len(w)) + w.tobytes())
        args += ["--imatrix", imatrix]
    subprocess.run(args, check=True)
    n_bytes = x.size // TYPES[ty][1] * TYPES[ty][2]
    padded = (n_bytes + 31) // 32 * 32
    raw = np.fromfile(out, np.uint8)[-padded:][:n_bytes].copy()
    return decode(ggml, ty, raw, x.size).reshape(x.shape)


def error(x, y, w):
    squares = (x.astype(np.float64) - y) ** 2
    return np.sqrt(np.average(squares, weights=None if w is None else np.broadcast_to(w, x.shape)))


def matrices(f32, rows):
    rng = np.random.default_rng(7)
    yield "normal", (0.05 * rng.standard_normal((256, 1024))).astype(np.float32)
    yield "Student-t", (0.05 * rng.standard_t(4, (256, 1024))).astype(np.float32)
    for path, columns in f32:
        yield os.path.basename(path), np.fromfile(path, np.float32).reshape(-1, int(columns))[:rows]


def ratio(a, b):
    return 1.0 if a == b else a / b if b > 0 else np.inf


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", required=True)
    parser.add_argument("--library", required=True, help="libggml-base of llama.cpp")
    parser.add_argument("--f32", nargs=2, metavar=("FILE", "COLUMNS"), action="append", default=[])
    parser.add_argument("--rows", type=int, default=256, help="rows of each --f32")
    parser.add_argument("--square", action="store_true", help="errors without importance weighted by squares")
    args = parser.parse_args()
    if not os.path.exists(args.library):
        sys.exit(f"SKIPPED: there is no {args.library}")
    ggml = load(args.library)
    sets = [(name, np.ascontiguousarray(x)) for name, x in matrices(args.f32, args.rows)]
    print("| type | " + " | ".join(f"{name} | with imatrix" for name, _ in sets) + " |")
    print("|---|" + "---|" * (2 * len(sets)))
    worse = False
    with tempfile.TemporaryDirectory() as folder:
        for ty in TYPES:
            ggml.ggml_quantize_init(TYPES[ty][0])
            cells = []
            for _, x in sets:
                importance = np.exp(1.5 * np.random.default_rng(8).standard_normal(x.shape[1])).astype(np.float32)
                for w in (None, importance):
                    if x.shape[1] % TYPES[ty][1]:
                        cells.append("-")
                        continue
                    by_us, by_them = ours(ggml, args.tandem, folder, ty, x, w), theirs(ggml, ty, x, w)
                    weights = x.astype(np.float64) ** 2 if args.square and w is None else w
                    against = ratio(error(x, by_us, weights), error(x, by_them, weights))
                    # Where both round alike, the last bit of a sum may differ.
                    worse |= against > 1 + 1e-5
                    cells.append(f"{against:.3f}")
            print(f"| {ty} | " + " | ".join(cells) + " |", flush=True)
    sys.exit("tandem's error is larger somewhere" if worse else 0)


if __name__ == "__main__":
    main()
