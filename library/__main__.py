"""`python -m covervlm`: the `covervlm` command."""

import sys

from covervlm.server.cli import main

sys.exit(main())
