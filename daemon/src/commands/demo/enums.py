"""What the demo edits under a running worker."""

import enum


class CrmType(str, enum.Enum):
    HUBSPOT = "HUBSPOT"
    SALESFORCE = "salesforce"
