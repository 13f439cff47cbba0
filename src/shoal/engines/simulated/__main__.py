"""`python -m shoal.engines.simulated`: see `--help`."""

import sys

from shoal.engines.simulated.options import parse
from shoal.engines.simulated.server import run

if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
