"""Command line of the export."""

import sys

from rtevo.export import main

if __name__ == "__main__":
    sys.exit(main())
