"""Process supervisor: runs a command that ends with its parent, and removes its folder and subprocesses.

Run as a script in a session of its own, with stdin a pipe from the parent: `vllm_supervisor.py FOLDER COMMAND...`. The
pipe closes when the parent dies, even by SIGKILL.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading

TERMINATE_SECONDS = 20.0
"""Time between SIGTERM and SIGKILL."""


def main() -> None:
    folder, *command = sys.argv[1:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def stop_when_the_pipe_closes() -> None:
        sys.stdin.buffer.read()
        child.terminate()
        try:
            child.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=stop_when_the_pipe_closes, daemon=True).start()
    child.wait()
    shutil.rmtree(folder, ignore_errors=True)
    # Subprocesses of the command are in this process group.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
