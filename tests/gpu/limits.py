"""What a GPU's memory and matrix units give, by PyTorch: bytes/s of a copy (read and written), and
operations/s of a product of bfloat16 matrices. Medians, on one line."""

import statistics

import torch


def seconds(work, runs: int = 20) -> float:
    """The median time of `work` on the device."""
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measured() -> tuple[float, float]:
    """Bytes/s of a copy, and operations/s of a product."""
    size, side = 1 << 30, 8192
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * size / seconds(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return bandwidth, 2 * side**3 / seconds(lambda: a @ b)


def main() -> None:
    bandwidth, matrix = measured()
    print(f"{bandwidth:.4g} {matrix:.4g} ({torch.cuda.get_device_name()}: copy, matrix product)")


if __name__ == "__main__":
    main()
