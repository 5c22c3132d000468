"""The composition root: the one place that sees every part, wires them, and ends them in order.

A controller process: bring the database up to date, become the one controller, load the state, find out what to begin
with (a new job, a restart, a resumption), serve, and end for one of four reasons. Nothing here decides anything about
a job; that is `core/`. Next: `controller/runner.py`, the thread that everything else feeds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sqlalchemy import Engine
