"""The command line from a checkout: `python cli.py …` is the installed `xattn-edge …`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    checkout = Path(__file__).resolve().parent
    sys.path[:0] = [str(checkout / "export"), str(checkout / "runtime")]

    from xattn_edge.commands import main

    main()
