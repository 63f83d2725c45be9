"""The few modules of `kubernetes.aio` that are used, without the packages around them.

`import kubernetes.aio.client` runs `kubernetes/__init__.py` first, and with it the synchronous client, its HTTP and
websocket libraries and the dynamic client: 11 MiB and 0.7 s (measured with 37.0.2) that no agent needs. Here the
packages on the way are stood in for by bare ones while the wanted modules are imported, and taken away again
afterwards, so that anybody else who imports `kubernetes` in this process gets the real thing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any, NamedTuple

_PACKAGES = ("kubernetes", "kubernetes.aio", "kubernetes.aio.client", "kubernetes.aio.config", "kubernetes.aio.utils")
_MODELS = "kubernetes.aio.client.models"  # only for deserializing into models, which is never done here


class Library(NamedTuple):
    """What is used of kubernetes.aio."""

    api_client: Any  # class ApiClient
    configuration: Any  # class Configuration
    in_cluster_loader: Any  # class InClusterConfigLoader
    load_kube_config: Any  # async function
    config_exception: Any  # class ConfigException


def load() -> Library:
    """Import the library, lean where its layout allows it."""
    if "kubernetes" in sys.modules:
        return _import()
    try:
        _stand_in()
        return _import()
    except (ImportError, AttributeError):  # another version with another layout
        _forget()
        return _import()
    finally:
        _forget()


def _import() -> Library:
    api_client = importlib.import_module("kubernetes.aio.client.api_client").ApiClient
    configuration = importlib.import_module("kubernetes.aio.client.configuration").Configuration
    client = sys.modules["kubernetes.aio.client"]
    client.__dict__.update(ApiClient=api_client, Configuration=configuration)  # the config loaders take them from there
    return Library(
        api_client,
        configuration,
        importlib.import_module("kubernetes.aio.config.incluster_config").InClusterConfigLoader,
        importlib.import_module("kubernetes.aio.config.kube_config").load_kube_config,
        importlib.import_module("kubernetes.aio.config.config_exception").ConfigException,
    )


def _stand_in() -> None:
    found = importlib.util.find_spec("kubernetes")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the package kubernetes is not installed", name="kubernetes")
    root = found.submodule_search_locations[0]
    for name in (*_PACKAGES, _MODELS):
        module = ModuleType(name)
        module.__path__ = [root + name.removeprefix("kubernetes").replace(".", "/")]
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _forget() -> None:
    for name in [name for name in sys.modules if name == "kubernetes" or name.startswith("kubernetes.")]:
        del sys.modules[name]
