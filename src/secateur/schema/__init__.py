"""The nouns: frozen records that the stages hand to each other. Each can be written by hand, saved and compared."""

from secateur.schema._record import from_json as from_json
from secateur.schema._record import to_json as to_json
