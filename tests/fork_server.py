"""A process that has imported everything, and forks to run a page of the documentation or an `electra-fast` command.

Importing torch, its optimiser, matplotlib and transformers takes ten seconds of CPU time, which is longer than most
pages take. `serve` imports them once and waits at a socket. A client sends its standard streams, its folder and what
to run; a forked child runs it and sends back the exit status. `install` writes a small program named electra-fast that
is such a client, for the shell blocks of a page; `run_page` is another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pages

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    message = [os.getcwd(), "electra-fast", *sys.argv[1:]]
    socket.send_fds(server, [json.dumps(message).encode()], [0, 1, 2])
    status = server.recv(1)
    sys.exit(status[0] if status else 70)
"""


def install(folder: Path, address: Path) -> None:
    """Write FOLDER/electra-fast, which has the server at this address run its arguments."""
    program = folder / "electra-fast"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)


def run_page(page: Path, folder: Path, address: Path, output: IO[str]) -> bool:
    """Have the server run a page's blocks in this folder; returns whether they succeeded. `output` gets what fails."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(address))
        streams = [0, output.fileno(), output.fileno()]
        socket.send_fds(server, [json.dumps([str(folder), "page", str(page)]).encode()], streams)
        return server.recv(1) == b"\0"


def serve(address: str) -> None:
    """Serve until the process is ended; "ready" on stdout says that clients may come."""
    import torch._dynamo  # noqa: F401  autograd imports it for the first optimiser step
    import transformers.models.bert.modeling_bert
    import transformers.models.electra.modeling_electra  # noqa: F401

    from electra_fast.cli.main import main
    from electra_fast.tasks import finetune
    from electra_fast.train import finish, pretrain

    # Drawing the curves takes as long as all else in a run of two steps, and measuring the peak a tenth of that.
    finish.plot_curves = lambda rows, path: path.touch()
    finetune.plot_finetuning = lambda rows, metric, path: path.touch()
    pretrain.measured_peak = lambda device: 1e12

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                if os.fork() == 0:
                    client.sendall(bytes([_run(main, client)]))
                    os._exit(0)
            with contextlib.suppress(ChildProcessError):  # no child is left
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(main, client: socket.socket) -> int:
    """Run what the client sent, on the client's streams and in its folder; returns the exit status."""
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    folder, program, *arguments = json.loads(message)
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
    os.chdir(folder)
    try:
        return _page(arguments) if program == "page" else main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _page(arguments: Sequence[str]) -> int:
    try:
        pages.run(Path(arguments[0]))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
