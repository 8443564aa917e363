"""Sends one task: its name, and how many seconds it takes."""

import sys

from app.tasks import sync

sync.delay(sys.argv[1], float(sys.argv[2]))
