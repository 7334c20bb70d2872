"""What an architecture must say about itself to be exported: the vocabulary that every family file is written in.

A family recognises a source folder by its `config.json` and opens it as a `Source`: graphs by role as torch modules
over flat tensors, what the original model does, and everything that the manifest needs. How graphs are exported and
written is not known here.
"""

from xattn_export.families.base.reference import (
    SAFE_LEAD,
    Chooses,
    ChoosesOverRegions,
    Embeds,
    Generated,
    Generates,
    Labels,
    Reference,
    generated_greedily,
)
from xattn_export.families.base.roles import Role, Symbol, TensorSpec, cross_specs, key_value_specs
from xattn_export.families.base.source import TOKENIZER_FILE, Family, GoldenInput, Source, SourceTokenizer

__all__ = [
    "SAFE_LEAD",
    "TOKENIZER_FILE",
    "Chooses",
    "ChoosesOverRegions",
    "Embeds",
    "Family",
    "Generated",
    "Generates",
    "GoldenInput",
    "Labels",
    "Reference",
    "Role",
    "Source",
    "SourceTokenizer",
    "Symbol",
    "TensorSpec",
    "cross_specs",
    "generated_greedily",
    "key_value_specs",
]
