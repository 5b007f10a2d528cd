"""The ClientApp of a recipe, which Flower starts anew for every message."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.flower.client import answer
from fedmr_merge.recipe.schema import read_recipe

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


def client_app(recipe: Path) -> ClientApp:
    """Return the app that follows a recipe, with the data of the machine that it runs on."""
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        if folder := str(context.run_config.get("folder", "")):
            os.chdir(folder)
        return Message(answer(message.content, read_recipe(recipe)), reply_to=message)

    app.train()(train)
    return app
