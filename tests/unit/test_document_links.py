"""Links between documents lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).exists()]


def anchors(document: Path) -> set[str]:
    """The anchors that headings get: lower case, punctuation dropped, blanks to hyphens."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_their_anchors_exist() -> None:
    found = 0
    for document in documents():
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if "://" in target:
                continue
            found += 1
            path, _, anchor = target.partition("#")
            linked = (document.parent / path).resolve() if path else document
            assert linked.exists(), f"{document.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in anchors(linked), f"{document.relative_to(ROOT)}: {target}"
    assert found > 10


def test_every_document_is_linked_from_the_readme_or_one_that_is() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached or not document.exists():
            continue
        reached.add(document)
        targets = re.findall(r"\]\(([^)\s#]+\.md)", document.read_text())
        waiting += [(document.parent / target).resolve() for target in targets]
    assert {path for path in documents() if ROOT / "docs" in path.parents} <= reached
