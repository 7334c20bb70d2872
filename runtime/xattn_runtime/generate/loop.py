"""Greedy decoding in one run of the generator graph, which holds the loop itself.

It generates what `greedy` does, a step at a time, with the decoder graph; it can do nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xattn_runtime.bundle.decoding import NO_TOKEN, Decoding
from xattn_runtime.execution.session import GraphSession, Tensor
from xattn_runtime.generate.decoder import FirstStep
from xattn_runtime.generate.sequence import Sequence, sequences_of

__all__ = ["GreedyLoop"]


class GreedyLoop(FirstStep):
    """A generator session. It keeps no state."""

    def __init__(self, session: GraphSession) -> None:
        """BundleError where an axis of the cache that must be static is not."""
        super().__init__(session)
        self._session = session

    def generate(self, image: Mapping[str, Tensor], decoding: Decoding) -> list[Sequence]:
        """What is generated for every image of the batch, with settings that are `plain_greedy`."""
        inputs = {
            "input_ids": self.unread(image, self.prompt(image, decoding.prompt_token_ids)),
            "max_new_tokens": np.array(decoding.max_new_tokens),
            "end_token_ids": np.array(decoding.end_token_ids or NO_TOKEN),
            "pad_token_id": np.array(decoding.pad_token_id),
        }
        ids, log_probs = self._session.run(
            ("token_ids", "log_probs"), {**inputs, **self.first_past(image).inputs, **self.cross(image)}
        )
        return sequences_of(ids, log_probs, decoding.end_token_ids)
