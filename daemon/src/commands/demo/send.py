"""Sends one task: its name, and how many seconds it takes."""

import os
import sys
import tempfile

from app.tasks import QUEUE, celery, sync

# A message is moved to its queue whole: Kombu makes the file first and writes it afterwards, and a worker that looks
# in between would take it empty.
with tempfile.TemporaryDirectory(dir=os.path.dirname(QUEUE)) as outgoing:
    celery.conf.broker_transport_options["data_folder_out"] = outgoing
    sync.delay(sys.argv[1], float(sys.argv[2]))
    for name in os.listdir(outgoing):
        os.rename(os.path.join(outgoing, name), os.path.join(QUEUE, name))
