"""The lines written by people: what the seeds directory holds, read strictly.

Layer of records and configuration: imports nothing above `errors`, `config` and `records`.
Reads files (`files`), everything else is pure. The format of each file stands in `formats`.
"""

from selfalign.seeds.citations import Citations, cited_rules
from selfalign.seeds.files import ANNOTATION_LIMIT, SEED_FILES, annotation_lines, file_digests
from selfalign.seeds.loading import load_seeds
from selfalign.seeds.model import (
    Exemplar,
    Hint,
    Labels,
    Principle,
    Seeds,
    Template,
    Templates,
    TopicSeed,
    Turn,
)

__all__ = [
    "ANNOTATION_LIMIT",
    "SEED_FILES",
    "Citations",
    "Exemplar",
    "Hint",
    "Labels",
    "Principle",
    "Seeds",
    "Template",
    "Templates",
    "TopicSeed",
    "Turn",
    "annotation_lines",
    "cited_rules",
    "file_digests",
    "load_seeds",
]
