"""What is said about a job that cannot run: one value, made by the rules and shown by the CLI.

No rule lives here. Next: `spec_rules.py`, `fault_rules.py`, `spec_mapping.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a job: the field by its dotted name, what it holds, what to do about it."""

    field: str
    value: object
    remedy: str

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) and self.value else repr(self.value)
        return f"{self.field}: {shown}: {self.remedy}"
