"""How the tests push: with the token of a user, to the small Hub, without waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub_models import QUICK
from hub_server import HubServer

from fedmr_merge.hub.http import Patience
from fedmr_merge.publish.hub import PushResult, push_to_hub
from fedmr_merge.publish.push_options import PushOptions

REPO = "alice/digits"
TOKEN = "hf_alice"


def push(
    hub: HubServer,
    folder: Path,
    repo: str = REPO,
    *,
    token: str | None = TOKEN,
    patience: Patience = QUICK,
    progress: Any = None,
    **options: Any,
) -> PushResult:
    """Push a folder to the small Hub; `options` are those of `PushOptions`."""
    options = {"endpoint": hub.endpoint, **options}
    return push_to_hub(folder, repo, PushOptions(**options), token=token, patience=patience, progress=progress)
