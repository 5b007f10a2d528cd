"""docs/flower.md: its recipes, the table of what `deployment` takes, and what it says of a SuperLink of one's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from tls import connect

from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.schema import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
def test_every_block_is_a_recipe(block):
    assert parse_recipe(yaml.safe_load(block), "docs/flower.md").deployment is not None


def test_the_table_of_deployment_is_its_options_and_their_defaults():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| `([^`|]+)` \|$", PAGE.split("## What `deployment` says")[1], flags=re.MULTILINE
    )
    defaults = vars(Deployment())
    assert {name: yaml.safe_load(default) for name, default in rows} == defaults
    assert [name for name, _ in rows] == [field.name for field in fields(Deployment)]


def test_every_file_that_the_services_are_given_is_made_on_the_page():
    services = re.findall(r"^\[Service\]\n.*?^$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(services) == 2
    asked = {path for service in services for path in re.findall(r"(?<= )/etc/flower/(\S+)", service)}
    made = {Path(path).name for path in re.findall(r" (?:-out|-keyout|-f) (\S+)", PAGE)}
    assert asked == {"ca.crt", "server.pem", "server.key", "node"}
    assert asked <= made


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_certificate_is_accepted_by_every_python_and_where_the_superlink_connects_to_itself(tmp_path):
    [commands] = re.findall(r"^cd /etc/flower\n(?:(?!```).*\n)+", PAGE, flags=re.MULTILINE)
    here = commands.replace("/etc/flower", str(tmp_path)).replace("chown flower", ": chown")
    subprocess.run(["bash", "-ec", here], check=True, capture_output=True)
    for host in ("server.example.org", "127.0.0.1"):
        connect(tmp_path / "ca.crt", tmp_path / "server.pem", tmp_path / "server.key", host)
