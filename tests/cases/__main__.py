"""`python -m tests.cases [WORD ...]`: the cases whose names hold a word, each with what is right and what was found."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.cases.harness import judge
from tests.cases.known_pictures import PICTURES
from tests.cases.known_tables import TABLES
from tests.cases.new_inputs import NEW


def show(words: list[str]) -> int:
    """Prints a row a case; returns how many are wrong."""
    wrong = 0
    for title, table in (("cases", (*PICTURES, *TABLES)), ("new inputs", NEW)):
        sorts: Counter[str] = Counter()
        chosen = [c for c in table if not words or any(w in c.name for w in words)]
        for one in chosen:
            with tempfile.TemporaryDirectory() as folder:
                sort, why = judge(one, Path(folder))
            right = "; ".join(dict.fromkeys(right.text for _, right in one.runs))
            sorts[sort or "right"] += 1
            print(
                f"| {one.name} | {right} | {f'**{sort}**: {why}' if sort else 'right'} |",
                flush=True,
            )
        wrong += sum(n for sort, n in sorts.items() if sort != "right")
        print(
            f"\n{title}: {len(chosen)}, {', '.join(f'{n} {s}' for s, n in sorts.most_common())}\n"
        )
    return wrong


if __name__ == "__main__":
    sys.exit(1 if show(sys.argv[1:]) else 0)
