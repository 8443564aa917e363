"""A Celery app whose broker is a directory: no server is needed."""

import os
import time

from celery import Celery

from app.models import Connection

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUEUE = os.path.join(HERE, "queue")

celery = Celery("shop", broker="filesystem://")
celery.conf.broker_transport_options = {
    "data_folder_in": QUEUE,
    "data_folder_out": QUEUE,
    "control_folder": os.path.join(HERE, "control"),
}
celery.conf.broker_connection_retry_on_startup = True


def note(line):
    with open(os.path.join(HERE, "ledger.txt"), "a") as ledger:
        ledger.write(line + "\n")


@celery.task
def sync(name, seconds):
    note(f"started {name}")
    time.sleep(seconds)
    label = Connection.__table__.c.crm_type.type.enums[0]
    note(f"finished {name}: inserts {label!r}")
