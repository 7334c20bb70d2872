"""Seconds and peak memory, in KiB, of a command. Run by `families.py`: COMMAND [ARGUMENT...].

A process begins with the peak of the one that started it: hence this small one in between.
"""

import os
import subprocess
import sys
import time


def main(command: list[str]) -> int:
    """Print both; the exit status is 1 where the command fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    print(time.perf_counter() - began, usage.ru_maxrss)
    return int(bool(status))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
