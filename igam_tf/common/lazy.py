"""Imports TensorFlow and Keras at first use, and registered classes when Keras looks for them.

A module that a help text needs, such as that of the attacks, imports `tf` and `keras` from here.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _WhenUsed(ModuleType):
    """A placeholder for a module, which is imported when one of its names is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import keras as keras
    import tensorflow as tf
else:
    keras, tf = _WhenUsed("keras"), _WhenUsed("tensorflow")


class _Around(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, around: Callable[[Callable[[], None]], None]):
        self._name, self._around, self._looking = name, around, False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's own spec, with `around` called around its execution."""
        if name != self._name or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)  # from the finders after this one
        finally:
            self._looking = False
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            sys.meta_path.remove(self)
            self._around(lambda: execute(module))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def around_import(name: str, around: Callable[[Callable[[], None]], None]) -> None:
    """When the module is imported, passes its code to `around` as a function to call."""
    sys.meta_path.insert(0, _Around(name, around))


class _Later:
    """A placeholder in Keras's custom objects for a class that its module registers when imported."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def from_config(self, config: dict) -> Any:
        """An object of the class itself."""
        return getattr(importlib.import_module(self._module), self._name).from_config(config)


def register_later(modules: Mapping[str, str]) -> None:
    """Lets `keras.saving.load_model` find classes by name and import their modules only then.

    Args:
        modules: registered name, such as "madry_models>MnistCNN" -> the module that registers it.
    """

    def register(execute: Callable[[], None] = lambda: None) -> None:
        execute()
        from keras.saving import get_custom_objects

        for name, module in modules.items():
            get_custom_objects().setdefault(name, _Later(module, name.split(">")[1]))

    register() if "keras" in sys.modules else around_import("keras", register)
