"""How the scripts begin, and how a signal ends them."""

import signal
import sys


def run(main):
    """Runs `main`. SIGTERM raises SystemExit, so that what cleans up on Ctrl-C runs then too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
