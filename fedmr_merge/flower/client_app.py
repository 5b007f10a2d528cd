"""The ClientApp of a recipe, which Flower starts anew for every message."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.flower.client import answer, answer_question
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.schema import Recipe, read_recipe

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


def client_app(recipe: Path) -> ClientApp:
    """Return the app that follows a recipe, with the data of the machine that it runs on."""
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        return Message(answer(message.content, _read(recipe, context), context.node_config), reply_to=message)

    def query(message: Message, context: Context) -> Message:
        return Message(answer_question(message.content, _read(recipe, context), context.node_config), reply_to=message)

    app.train()(train)
    app.query()(query)
    return app


def _read(recipe: Path, context: Context) -> Recipe:
    """Return the recipe; in a rehearsal its paths are relative to the folder that the command was typed in."""
    if folder := str(context.run_config.get("folder", "")):
        os.chdir(folder)
    return read_recipe(recipe, own=Own((recipe.parent, Path.cwd())))
