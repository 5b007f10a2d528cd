"""Randomness that nobody can recompute: the noise of a private run, and who takes part in it.

A run's seed is published with it, so that noise drawn from the seed could be drawn again and subtracted. A private run
draws from a secret key instead: 32 bytes of the operating system's entropy, which are kept nowhere and end with the
process, or the bytes of a key file, for users who need to repeat a run. Several runs may have one key file: what is
drawn for a model also depends on that model, as the same noise on two of them could be subtracted from both.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.errors import TrainingError
from fedmr_merge.paths import local_path

KEY_BYTES = 32
_LARGEST_KEY_FILE = 1 << 20


class Secret:
    """A key, and what is drawn from it: every purpose and place has a stream of its own.

    Args:
        key: The key. Whoever has it can draw the same numbers.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_this_process(cls) -> Secret:
        """Return a new key of the operating system's entropy."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def of_file(cls, path: str) -> Secret:
        """Return the key of a file. Raises TrainingError when it cannot be read or is too short to be a secret."""
        file = local_path(path)
        hint = f"make one with: head -c {KEY_BYTES} /dev/urandom > {path}"
        try:
            with open_regular(file) as stream:
                content = stream.read(_LARGEST_KEY_FILE)
        except OSError as error:
            raise TrainingError(f"training.privacy.key_file: {file}: {error.strerror}", hint=hint) from error
        if len(content) < KEY_BYTES:
            raise TrainingError(
                f"training.privacy.key_file: {file}: {len(content)} bytes are too few for a key", hint=hint
            )
        return cls(hashlib.sha256(content).digest())

    def __repr__(self) -> str:
        """Return a string without the key."""
        return "Secret()"

    def derived(self, purpose: str, *place: int | str) -> Secret:
        """Return a secret whose numbers have nothing to do with this one's, nor with those of another place."""
        return Secret(self._stream(KEY_BYTES, purpose, *place))

    def of_content(self, tensors: Mapping[str, Tensor]) -> Secret:
        """Return a secret whose numbers have nothing to do with this one's, nor with those for other values."""
        digest = hashlib.sha256()
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return self.derived("content", digest.hexdigest())

    def generator(self, purpose: str, *place: int | str) -> np.random.Generator:
        """Return numpy's generator of a purpose and place, for what need not be a secret from the process itself."""
        return np.random.Generator(np.random.PCG64(int.from_bytes(self._stream(KEY_BYTES, purpose, *place), "little")))

    def gaussian(self, shape: torch.Size, purpose: str, *place: int | str) -> Tensor:
        """Return numbers of the standard normal distribution, float32 on the CPU: Box and Muller 1958, on a stream of
        SHAKE-256, so that nothing can be computed about one number from the others.
        """
        count = math.prod(shape)
        pairs = (count + 1) // 2
        words = np.frombuffer(self._stream(16 * pairs, purpose, *place), dtype="<u8")
        # 53 bits, and never 0, whose logarithm is not finite.
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * math.pi * uniform[pairs:]
        drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        return torch.from_numpy(drawn.astype(np.float32)).view(shape)

    def _stream(self, count: int, purpose: str, *place: int | str) -> bytes:
        """Return so many bytes that depend on the key and on every argument."""
        return hashlib.shake_256(self._key + repr((purpose, *place)).encode()).digest(count)
