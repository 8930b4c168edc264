"""The model of `serving.py` behind MLServer; runs in MLServer's own environment."""

from __future__ import annotations

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

__all__ = ["TorchModel"]


class TorchModel(MLModel):
    """Runs a module that was saved whole."""

    async def load(self) -> bool:
        """Load it."""
        torch.set_num_threads(1)
        self._module = torch.load(self.settings.parameters.uri, weights_only=False).eval()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request."""
        rows = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]))
        with torch.inference_mode():
            output = self._module(rows).numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)]
        )
