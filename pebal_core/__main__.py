"""``python -m pebal_core`` is ``pebal``."""

import sys

from .commands.main import main

sys.exit(main())
