"""`electra-fast` without its imports: a process that has them forks for each command, so a command starts at once.

`serve` runs in a process of its own. It imports the command line, then waits at a socket; for each client it forks a
child, which takes the client's standard streams, folder and arguments and runs the command. `install` writes a small
program named electra-fast that is such a client. Importing torch takes longer than most commands of the tests.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps([os.getcwd(), *sys.argv[1:]]).encode()], [0, 1, 2])
    status = server.recv(1)
    sys.exit(status[0] if status else 70)
"""


def install(folder: Path, address: Path) -> None:
    """Write FOLDER/electra-fast, which sends its arguments to the server at this address."""
    program = folder / "electra-fast"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)


def serve(address: str) -> None:
    """Serve until the process is ended; "ready" on stdout says that clients may come."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401  the curves at a run's end
    import torch._dynamo  # noqa: F401  which autograd imports when it first takes a step

    import electra_fast.cli.pretraining
    import electra_fast.cli.tasks
    import electra_fast.tasks.finetune
    import electra_fast.train.pretrain  # noqa: F401
    from electra_fast.cli.main import main

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
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _run(main, client: socket.socket) -> int:
    """The command that the client sent, on the client's streams; returns its exit status."""
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    folder, *arguments = json.loads(message)
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
    os.chdir(folder)
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
