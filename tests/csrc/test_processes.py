"""Processes that fork after the core has started threads, and that exit while a thread is within an op."""

import os
import subprocess
import sys

import pytest

from electra_fast.ops._core import core, why

pytestmark = pytest.mark.skipif(core is None, reason=why)

FORK = """
import os, signal, sys
import torch
from numerics import floats_of, run
from test_threads import CASES
from electra_fast import ops
from electra_fast.ops._core import core

torch.manual_seed(0)
cases = {name: example() for name, example in CASES.items()}
outputs = {name: floats_of(getattr(ops, name)(**given)) for name, given in cases.items()}
upstream = {name: [torch.randn_like(output) for output in outputs[name]] for name in cases}
rows = torch.arange(1024)
masks = torch.zeros(2, 1024, 256, dtype=torch.uint8)

def results(mask):
    core.dropout_mask((rows, 1, 26), 1024, 256, 0, mask, 2)
    yield mask
    for name, given in cases.items():
        yield from run(getattr(ops, name), given, upstream[name]).values()

torch.set_num_threads(2)
list(results(masks[0]))  # starts threads, which a child does not inherit
torch.set_num_threads(1)
alone = list(results(masks[0]))
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.set_num_threads(1)  # as a worker of a DataLoader does, since torch's own parallel regions would wait for ever
    before, found = len(os.listdir('/proc/self/task')), results(masks[1])
    mask = next(found)
    started = len(os.listdir('/proc/self/task')) - before  # a thread of its own, for the mask
    os._exit(0 if started == 1 and all(map(torch.equal, [mask, *found], alone)) else 1)
print(os.waitpid(child, 0)[1])
"""

EXIT = """
import threading, time
import torch
from electra_fast import ops

torch.set_num_threads(2)
x, weight, bias = torch.randn(2000, 256, requires_grad=True), torch.randn(1024, 256), torch.randn(1024)
started = threading.Event()

def steps():
    while True:
        ops.linear(x, weight, bias, gelu=True).sum().backward()
        started.set()

threading.Thread(target=steps, daemon=True).start()
started.wait()
time.sleep(0.05)
print("done", flush=True)
"""


def python(program: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_a_forked_child_computes_the_bits_of_its_parent() -> None:
    """In every op, forward and backward; where the core is asked for two threads, it does not wait for its parent's."""
    done = python(FORK)
    assert done.stdout.strip() == "0", (done.stdout, done.stderr[-2000:])  # 14 is the alarm: it hung


def test_a_process_may_exit_while_a_thread_takes_a_step() -> None:
    """A daemon thread within an op, of ours or of torch, does not abort the process, nor keep it."""
    done = python(EXIT)
    assert (done.returncode, done.stdout) == (0, "done\n"), (done.returncode, done.stderr[-2000:])
