"""Runs a command beside the process that asked for it: when either ends, nothing of the other is left.

Run as a script, in a session of its own, with its input connected to that process: `keeper.py FOLDER COMMAND...`. The
folder goes with it. Whoever dies, even by SIGKILL, closes its end of the pipe.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading

PATIENCE = 20.0
"""Seconds that the command is given to end by itself."""


def main() -> None:
    folder, *command = sys.argv[1:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def until_the_pipe_closes() -> None:
        sys.stdin.buffer.read()
        child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=until_the_pipe_closes, daemon=True).start()
    child.wait()
    shutil.rmtree(folder, ignore_errors=True)
    # What the command has started is in the same group as this process.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
