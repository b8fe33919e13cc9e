"""Measure what a call costs: its time, its kernel launches, its memory, and a profile."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

Step = Callable[[], object]  # one call of it is measured
L2_FLUSH_BYTES = 256 << 20  # several times the largest second-level cache
SAMPLE_SECONDS = 0.02  # the least duration of a timed sample


def sample(step: Step, calls: int, device: str, cold: bool) -> float:
    """Seconds of one call, as the mean over `calls`: by the wall clock on the CPU, by events on CUDA.

    cold: flush the second-level cache before each call (CUDA).
    """
    if device != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - begin) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if not cold:
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    total = 0.0
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(calls):
        flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end)
    return total / 1e3 / calls


def warm_up(step: Step, device: str, cold: bool) -> int:
    """Call the step for at least SAMPLE_SECONDS; returns how many calls fill that time."""
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < SAMPLE_SECONDS:
        taken = sample(step, 1, device, cold)
        done += 1
    return max(1, min(1000, math.ceil(SAMPLE_SECONDS / taken)))


def captured(step: Step) -> Step:
    """The step as a CUDA graph: three calls warm up, one is recorded, and the returned function replays it.

    Raises if the step waits for the device. The error comes during the warm-up, since an error while recording would
    leave the allocator and the random generator unusable for every later contestant.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> object:
        graph.replay()
        return out

    return replay


def launches(step: Step) -> int:
    """The number of kernels that the device runs in a call, including those inside a CUDA graph."""
    with torch_profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    marks = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep", "##", "Torch-Compiled")
    return sum(
        event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(marks)
        for event in trace.events() or ()
    )


def peak_cuda_mb(step: Step, allocated: int, reserved: int) -> float:
    """Device memory that a contestant takes in MB: the peak of a call, or its CUDA graph's, if that is more.

    allocated, reserved: bytes that torch had allocated and reserved before the contestant was built.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    own = torch.cuda.memory_reserved() - reserved
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - allocated, own) / 1e6


def peak_rss_mb(build: Callable[[], Step]) -> float:
    """Growth of this process's peak resident memory in MB while a contestant is built and called twice.

    Call it in a fresh process, since the peak never falls.
    """
    before = _status_mb("VmRSS")
    step = build()
    step()
    step()
    return _status_mb("VmHWM") - before


def _status_mb(field_name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field_name)) * 1024 / 1e6


def profile(step: Step, device: str, path: Path) -> None:
    """Write a Chrome trace of one call to `path`, and print its time by operator.

    If the file exists, it is kept, and the new one gets a number.
    """
    first, number = path, 1
    while path.exists():
        number += 1
        path = first.with_stem(f"{first.stem}-{number}")
    on_cuda = device == "cuda"
    with torch_profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as trace:
        step()
        if on_cuda:
            torch.cuda.synchronize()
    trace.export_chrome_trace(str(path))
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    print(trace.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))
    print(f"  trace: {path}")


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
