"""How fast the products of matrices are by themselves, beside what a GPU's memory and matrix units give.

    python3 tests/gpu/kernels.py [FOLDER_OF_PTX]

Each product runs as often as its weights differ, 400 MB of them, in one CUDA graph, so that no cache has
them; as in a pass, each kernel may begin before the last one has ended. Needs PyTorch, and a device of
compute capability 9.0. Medians.
"""

import ctypes
import gzip
import pathlib
import sys

import torch

import limits

PTX = pathlib.Path(__file__).resolve().parents[2] / "engine/cuda/ptx/sm_90"

# Rows, columns, and whether the rows are gates and up projections: the products of a block of an 8B Llama.
SHAPES = [(28672, 4096, True), (4096, 14336, False), (6144, 4096, False), (4096, 4096, False)]

# Bytes of a cell of 16 rows and 32 columns.
CELL_BYTES = {"bf16": 1024, "q8": 544, "q4_affine": 320}

# As in engine/src/cuda/matrix.rs.
PARTS, STAGE_CELLS, INPUT_CELL_BYTES, FEW_THREADS = 4, 8, 64, 128
HOPPER_THREADS, HOPPER_SHARED = 512, 3 * 128 * 128 * 2 + 256 * 128 * 4

MAX_DYNAMIC_SHARED, EARLY_LAUNCH = 8, 6


class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16)]


class Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    ]


class ToRows(ctypes.Structure):
    _fields_ = [
        ("output", ctypes.c_uint64),
        ("bias", ctypes.c_uint64),
        ("residual", ctypes.c_uint64),
        ("stride", ctypes.c_int),
        ("first_row", ctypes.c_int),
    ]


class Activations(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint64), ("cells", ctypes.c_int), ("cores", ctypes.c_int)]


class ToGated(ctypes.Structure):
    _fields_ = [("output", Activations), ("bias", ctypes.c_uint64)]


class Kernel:
    """A kernel of a file of PTX, and how it is launched."""

    def __init__(self, driver: ctypes.CDLL, file: pathlib.Path, name: str, threads: int, shared: int) -> None:
        self.driver, self.threads, self.shared = driver, threads, shared
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        text = gzip.decompress(file.read_bytes()) + b"\0"
        self.check(driver.cuModuleLoadData(ctypes.byref(self.module), text), file.name)
        self.check(driver.cuModuleGetFunction(ctypes.byref(self.function), self.module, name.encode()), name)
        self.check(driver.cuFuncSetAttribute(self.function, MAX_DYNAMIC_SHARED, shared), name)

    @staticmethod
    def check(result: int, what: str) -> None:
        if result:
            sys.exit(f"{what}: the driver says {result}")

    def launch(self, blocks: int, arguments: list) -> None:
        early = Attribute(EARLY_LAUNCH, b"", (ctypes.c_int * 16)(1))
        stream = torch.cuda.current_stream().cuda_stream
        grid, block = (ctypes.c_uint * 3)(blocks, 1, 1), (ctypes.c_uint * 3)(self.threads, 1, 1)
        config = Config(grid, block, self.shared, stream, ctypes.pointer(early), 1)
        places = [ctypes.cast(ctypes.pointer(argument), ctypes.c_void_p) for argument in arguments]
        places = (ctypes.c_void_p * len(places))(*places)
        self.check(self.driver.cuLaunchKernelEx(ctypes.byref(config), self.function, places, None), "launch")


def graph_seconds(work, count: int, runs: int = 15) -> float:
    """The median time of one of the `count` things that `work` does."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
        return limits.seconds(graph.replay, runs) / count


def small_numbers(size: int) -> torch.Tensor:
    """Random bytes that are all numbers, whatever reads them as bfloat16."""
    return (torch.randn(size // 2, device="cuda") * 0.02).to(torch.bfloat16)


def targets(output: torch.Tensor, rows: int, gated: bool, cores: bool, add: bool) -> tuple[ToRows, ToGated]:
    place = output.data_ptr()
    if gated:
        return ToRows(), ToGated(Activations(place, rows // 2 // 32, int(cores)), 0)
    return ToRows(place, 0, place if add else 0, rows, 0), ToGated()


def few(driver, folder: pathlib.Path, kind: str, shape, tokens: int) -> tuple[float, int]:
    """Seconds of a product of up to 64 tokens, and its matrix's bytes."""
    rows, columns, gated = shape
    tiles = 1 << max(0, (tokens - 1) // 8).bit_length()
    row_tiles = 1 if tiles < 4 else 2
    cells, sums = columns // 32, tiles * row_tiles * 16 * 8 * 4
    stages = 2 if CELL_BYTES[kind] > 384 else 3
    cell_bytes = CELL_BYTES[kind] + (INPUT_CELL_BYTES if tokens == 1 else 0)
    ring = stages * STAGE_CELLS * cell_bytes if kind != "bf16" and tiles <= 2 else 0
    name, size_name = f"linear_few_{kind}", "alone" if tokens == 1 else str(tiles)
    kernel = Kernel(driver, folder / f"{name}.ptx.gz", f"{name}_{size_name}", FEW_THREADS, PARTS * max(ring, sums))
    size = rows // 16 * cells * CELL_BYTES[kind]
    matrices = [small_numbers(size) for _ in range(max(4, 400_000_000 // size))]
    inputs, output = small_numbers(tiles * 8 * columns * 2), torch.zeros(tiles * 8 * rows, device="cuda")
    to_rows, to_gated = targets(output, rows, gated, False, False)
    pointer, whole = ctypes.c_uint64, ctypes.c_int

    def work() -> None:
        for matrix in matrices:
            places = [pointer(matrix.data_ptr()), pointer(inputs.data_ptr())]
            sizes = [whole(cells), whole(tokens), whole(rows)]
            kernel.launch(-(-rows // 16 // row_tiles), [*places, *sizes, to_rows, to_gated])

    return graph_seconds(work, len(matrices)), size


def many(driver, folder: pathlib.Path, shape, tokens: int) -> float:
    """Seconds of a product of many tokens in bfloat16, by the units that four warps use together."""
    rows, columns, gated = shape
    name = "gated_many_hopper" if gated else "linear_many_hopper"
    kernel = Kernel(driver, folder / "linear_hopper.ptx.gz", name, HOPPER_THREADS, HOPPER_SHARED)
    matrices = [small_numbers(rows * columns * 2) for _ in range(4)]
    inputs, output = small_numbers(tokens * columns * 2), torch.zeros(tokens * rows, device="cuda")
    to_rows, to_gated = targets(output, rows, gated, True, True)
    pointer, whole = ctypes.c_uint64, ctypes.c_int
    rest = [whole(rows // 16), whole(0), to_gated] if gated else [whole(rows), to_rows]

    def work() -> None:
        for matrix in matrices:
            places = [pointer(matrix.data_ptr()), pointer(inputs.data_ptr())]
            kernel.launch(-(-rows // 256) * -(-tokens // 128), [*places, whole(columns // 32), whole(tokens), *rest])

    return graph_seconds(work, len(matrices), 8)


def torch_seconds(shape, tokens: int) -> float:
    rows, columns, _ = shape
    matrices = [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(4)]
    inputs = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)

    def work() -> None:
        for matrix in matrices:
            inputs @ matrix.T

    return graph_seconds(work, len(matrices), 8)


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else PTX
    bandwidth, matrix = limits.measured()
    driver = ctypes.CDLL("libcuda.so.1")
    print("| weights | product | tokens | time, us | of a copy's rate |")
    print("|---|---|---|---|---|")
    for kind in CELL_BYTES:
        for shape in SHAPES:
            for tokens in (1, 8, 64):
                seconds, size = few(driver, folder, kind, shape, tokens)
                part = 100 * size / bandwidth / seconds
                print(f"| {kind} | {shape[0]} x {shape[1]} | {tokens} | {seconds * 1e6:.1f} | {part:.0f}% |", flush=True)
    print("\n| product | tokens | time, us | TFLOP/s | of the units | PyTorch's TFLOP/s |")
    print("|---|---|---|---|---|---|")
    for tokens in (512, 4096):
        for shape in SHAPES:
            operations = 2 * shape[0] * shape[1] * tokens
            seconds, peer = many(driver, folder, shape, tokens), torch_seconds(shape, tokens)
            rates = [operations / time / 1e12 for time in (seconds, peer)]
            part = 100 * operations / seconds / matrix
            print(
                f"| {shape[0]} x {shape[1]} | {tokens} | {seconds * 1e6:.1f} | {rates[0]:.0f} | {part:.0f}% "
                f"| {rates[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
