"""``python -m rtevo.bridge``: see :mod:`rtevo.bridge.keys`."""

from rtevo.bridge.keys import main

raise SystemExit(main())
