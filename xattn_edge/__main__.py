"""`python -m xattn_edge`: the command line, where the console script is not on the path."""

from __future__ import annotations

from xattn_edge.commands import main

if __name__ == "__main__":
    main()
