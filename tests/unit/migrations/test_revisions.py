"""The list of versions that is read on every start is that of the files."""

from __future__ import annotations

from pathlib import Path

from alembic.script import ScriptDirectory

import migrations
from migrations.revisions import HEAD, REVISIONS


def test_the_list_of_versions_is_that_of_the_files() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert [each.revision for each in script.walk_revisions()][::-1] == list(REVISIONS)
    assert script.get_heads() == [HEAD]
