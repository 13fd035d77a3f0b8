"""Where plug-ins of the first edition import `visit` from; new ones take it from `opdbench.methods`."""

from opdbench.methods.opd import visit

__all__ = ["visit"]
