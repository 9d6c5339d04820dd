"""GPU-only checks, run by benchmarks/gpu_check.py: streams, another thread's capture, exhausted memory."""

import ctypes
import threading

import torch
from torch import Tensor

from sbnref import SyncBatchNorm
from sbnref.impls import cuda, reference

SHAPE = (64, 8, 32, 32)  # split over blocks, which synchronize through counters per stream


def step(layer: SyncBatchNorm, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Return the output and the gradients."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), dy)


def two_streams() -> None:
    """Check that two concurrent streams get the bits that each gets alone from one layer."""
    layer = SyncBatchNorm(SHAPE[1], track_running_stats=False, impl="cuda", device="cuda")
    inputs = [torch.randn(2, *SHAPE, device="cuda") for _ in range(2)]  # x and dy
    alone = [step(layer, *pair) for pair in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream, pair, want in zip(streams, inputs, alone, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(1_000_000)  # half a millisecond, for the host to reach the other stream
                results.append((step(layer, *pair), want))
    torch.cuda.synchronize()
    for got, want in results:
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def other_capture() -> None:
    """Call the kernels for the first time while another thread captures a graph in the strictest mode."""
    torch.cuda.set_stream(torch.cuda.Stream())
    layer, x, dy = SyncBatchNorm(SHAPE[1], impl="cuda", device="cuda"), *torch.randn(2, *SHAPE, device="cuda")
    want = step(SyncBatchNorm(SHAPE[1], impl="reference", device="cuda"), x, dy)  # starts autograd's thread, too
    assert cuda.why_not(x.device) is None
    counter = torch.zeros((), device="cuda").add_(1)
    # PyTorch's allocator keeps this memory, and so does not ask CUDA for more, which the mode forbids.
    # torch.cuda.graph would give the memory back.
    spare = [torch.empty(2**power, dtype=torch.uint8, device="cuda") for power in (19, 23, 25) for _ in range(8)]
    del spare
    torch.cuda.synchronize()
    graph, began, done = torch.cuda.CUDAGraph(), threading.Event(), threading.Event()

    def capture() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.capture_begin(capture_error_mode="global")
            began.set()
            done.wait()
            counter.add_(1)
            graph.capture_end()

    thread = threading.Thread(target=capture)
    thread.start()
    try:
        assert began.wait(20), "the capture did not begin"
        got = step(layer, x, dy)
    finally:
        done.set()
        thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert counter.item() == 2, "the other thread's graph is not what it captured"
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-2)  # includes sums of 65536 numbers


def no_memory() -> None:
    """Check that a call gets memory for its counters if only PyTorch's cache has some."""
    driver = ctypes.CDLL("libcuda.so.1")  # bypasses PyTorch's allocator, which would release its cache
    x = torch.randn(SHAPE, device="cuda")
    want = reference.forward_stats(x, 1)
    assert cuda.why_not(x.device) is None
    spare = [torch.empty(2**19, dtype=torch.uint8, device="cuda") for _ in range(32)]
    del spare
    torch.cuda.synchronize()
    taken: list[int] = []
    address = ctypes.c_uint64()
    for power in range(30, 8, -1):
        while driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(2**power)) == 0:
            taken.append(address.value)
    try:
        got = cuda.forward_stats(x, 1)
    finally:
        for each in taken:
            driver.cuMemFree_v2(ctypes.c_uint64(each))
    assert taken, "the driver gave no memory"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
