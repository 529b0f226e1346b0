"""Makes ``python -m pebal_core`` the same as the command ``pebal``."""

import sys

from .commands.main import main

sys.exit(main())
