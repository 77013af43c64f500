"""What two runs that should be the same are compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(out: Path) -> dict[str, str]:
    """Every file below a folder but the summaries, which say how long the last call took."""
    paths = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "summary.json")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
