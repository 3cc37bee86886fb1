"""No data set may be fetched, or found where Debian puts one."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dataset import mnist


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(mnist, "DEBIAN", Path("nowhere"))
