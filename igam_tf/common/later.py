"""Classes that Keras finds by their registered name in a file before their module was imported."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from typing import Any


class _Later:
    """Stands among Keras's custom objects for a class whose module registers it when imported."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def from_config(self, config: dict) -> Any:
        """An object of the class itself."""
        return getattr(importlib.import_module(self._module), self._name).from_config(config)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers when Keras is imported, for a program that never does shall not wait for it."""

    def __init__(self, modules: Mapping[str, str]):
        self._modules, self._looking = modules, False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Keras's own spec, whose module is registered with once it has been run."""
        if name != "keras" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)  # of the finders after this one
        finally:
            self._looking = False
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            sys.meta_path.remove(self)
            execute(module)
            _register(self._modules)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(modules: Mapping[str, str]) -> None:
    from keras.saving import get_custom_objects

    for name, module in modules.items():
        get_custom_objects().setdefault(name, _Later(module, name.split(">")[1]))


def register_later(modules: Mapping[str, str]) -> None:
    """Lets `keras.saving.load_model` find classes by name, and import their modules when it does.

    Args:
        modules: registered name, such as "madry_models>MnistCNN" -> the module that registers it.
    """
    if "keras" in sys.modules:
        _register(modules)
    else:
        sys.meta_path.insert(0, _AfterKeras(modules))
