"""`python -m shoal.engines.simulated`: see `--help`."""

import os
import sys

from shoal.engines.simulated.options import PROGRAM, parse, usage
from shoal.engines.simulated.server import run


def main(argv: list[str]) -> int:
    """The process's exit code."""
    if "--help" in argv:
        sys.stdout.write(usage())
        return 0
    try:
        options = parse(argv)
        elastic = None
        if os.environ.get("SHOAL_MEMORY_SOCKET"):
            # Only here: an engine with a fixed KV cache starts faster without.
            from shoal.memory.elastic import ElasticTerms

            elastic = ElasticTerms.read(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}; --help lists what there is\n")
        return 2
    return run(options, elastic)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
