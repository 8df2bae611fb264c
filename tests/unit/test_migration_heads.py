"""H-A, R1, EG-1 without a server: what the two chains of migrations look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from tests.alembic_command import INI, SECTIONS

from matview_operator.adapters.postgres.migrations import scripts


@pytest.mark.parametrize("section", SECTIONS)
def test_h_a_a_section_has_a_single_head(section: str) -> None:
    chain = ScriptDirectory.from_config(Config(INI, ini_section=section))
    assert len(chain.get_heads()) == 1
    assert len(chain.get_bases()) == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_h_a_revisions_are_numbers_in_order(section: str) -> None:
    # `migrate --check` compares them: a greater one is a newer program's.
    revisions = [
        script.revision for script in ScriptDirectory.from_config(Config(INI, ini_section=section)).walk_revisions()
    ]
    assert revisions == [f"{number:04}" for number in range(len(revisions), 0, -1)]


def test_h_a_the_command_line_migrates_by_the_same_scripts_as_alembic() -> None:
    section = Config(INI, ini_section="alembic").get_main_option("script_location")
    assert section is not None
    assert scripts().samefile(section)


def test_no_package_shadows_alembic_or_the_standard_library() -> None:
    # With an __init__.py, `python -m alembic` and `python -m pytest` die in the checkout.
    assert not [*INI.parent.glob("alembic/__init__.py"), *INI.parent.glob("operator/__init__.py")]
    assert Path(INI.parent, "alembic", "bookkeeping", "env.py").is_file()
