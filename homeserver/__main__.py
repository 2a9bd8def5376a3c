"""``python -m homeserver``, the same as ``homeserver``."""

import sys

from homeserver.cli import main

sys.exit(main())
