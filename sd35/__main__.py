"""`python -m sd35`: the command line."""

import sys

from .cli import main

sys.exit(main())
