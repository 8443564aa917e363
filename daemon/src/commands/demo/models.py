"""A mapped class with an enum column that sends the members' values."""

from sqlalchemy import Column, Enum, Integer
from sqlalchemy.orm import declarative_base

from app.enums import CrmType

Base = declarative_base()


class Connection(Base):
    __tablename__ = "connection"

    id = Column(Integer, primary_key=True)
    crm_type = Column(Enum(CrmType, name="crm_type", values_callable=lambda e: [m.value for m in e]))
