#!/usr/bin/env python3
"""Compiles the kernels to PTX, which is kept beside them: a build of Umbel needs no CUDA.

    python3 -m venv /tmp/nvrtc && /tmp/nvrtc/bin/pip install nvidia-cuda-nvrtc-cu12==12.1.105
    /tmp/nvrtc/bin/python engine/cuda/build.py [FOLDER]

With FOLDER it leaves those beside the sources as they are, and writes there, for `umbel-gpu-bench --kernels`.
NVRTC is the compiler alone and needs neither a GPU nor a driver. Its version decides which drivers
take the result: 12.1 writes PTX that drivers from 530 on compile for their device.
"""

import ctypes
import gzip
import hashlib
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "ptx"

# The oldest devices with matrix units for bfloat16 and asynchronous copies; and those on which a kernel
# may begin early.
ARCHITECTURES = ["80", "90"]

# What only devices of one capability have: matrix units that four warps use together.
HOPPER = "linear_hopper"

FORMATS = {
    "bf16": "Bf16",
    "f16": "F16",
    "q4_symmetric": "Symmetric4",
    "q4_affine": "Affine<0>",
    "q5_symmetric": "Symmetric5",
    "q5_affine": "Affine<1>",
    "q6": "Sixes",
    "q8": "Bytes",
}


# How a session keeps keys and values.
PAGES = {"bf16": "Bf16Pages", "bytes": "BytePages"}

# Heads up to 128 values, and those above.
SIZES = {"": "ATTENTION_OF_SIZES", "_large": "ATTENTION_OF_LARGE_SIZES"}


def nvrtc() -> ctypes.CDLL:
    """The compiler: the one that pip installed, or the system's."""
    for folder in map(pathlib.Path, sys.path):
        for library in sorted(folder.glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(library))
    return ctypes.CDLL("libnvrtc.so")


def compiled(library: ctypes.CDLL, source: pathlib.Path, architecture: str, defines: list[str]) -> bytes:
    """The PTX of a source file; ends the program with the compiler's words where it has none."""
    program = ctypes.c_void_p()
    name = source.name.encode()
    library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None)
    target = f"--gpu-architecture=compute_{architecture}"
    options = [target, "--std=c++17", "-default-device", f"-I{HERE}", *defines]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = library.nvrtcCompileProgram(program, len(options), array)
    log = text(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
    if failed:
        sys.exit(f"{source.name}: {log.decode()}")
    return text(program, library.nvrtcGetPTXSize, library.nvrtcGetPTX)


def text(program, size_of, text_of) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    text_of(program, buffer)
    return buffer.value


def digest() -> str:
    """What the sources are, so that a test can tell whether the PTX is theirs."""
    sources = sorted([*HERE.glob("*.cu"), *HERE.glob("*.cuh")])
    sums = (hashlib.sha256(source.read_bytes()).hexdigest() + f"  {source.name}\n" for source in sources)
    return "".join(sums)


def modules(source: pathlib.Path) -> dict[str, list[str]]:
    """What is compiled of a source file, and with which definitions."""
    if source.stem == "attention":
        return {
            f"{source.stem}_{name}{large}": [f"-DPAGES_NAME={name}", f"-DPAGES={pages}", f"-DSIZES={sizes}"]
            for name, pages in PAGES.items()
            for large, sizes in SIZES.items()
        }
    if source.stem not in ("linear_few", "experts_few"):
        return {source.stem: []}
    return {
        f"{source.stem}_{name}": [f"-DFORMAT_NAME={name}", f"-DFORMAT={format}"]
        for name, format in FORMATS.items()
    }


def main() -> None:
    library = nvrtc()
    for architecture in ARCHITECTURES:
        out = OUT / f"sm_{architecture}"
        out.mkdir(parents=True, exist_ok=True)
        for source in sorted(HERE.glob("*.cu")):
            hopper = source.stem == HOPPER
            if hopper and architecture != "90":
                continue
            for name, defines in modules(source).items():
                ptx = compiled(library, source, "90a" if hopper else architecture, defines)
                # Without a time stamp, so that the same source makes the same file.
                (out / f"{name}.ptx.gz").write_bytes(gzip.compress(ptx, mtime=0))
                print(f"{out.name}/{name}: {len(ptx)} bytes")
    (OUT / "sources.sha256").write_text(digest())


if __name__ == "__main__":
    main()
